variable "app_name" {
  description = "Name of the application in the Juju model."
  type        = string
  default     = "kata"
  nullable    = false
}

variable "base" {
  description = "Base of the machines that the charm goes to: it must be theirs."
  type        = string
  default     = "ubuntu@24.04"
  nullable    = false

  validation {
    condition     = contains(["ubuntu@22.04", "ubuntu@24.04", "ubuntu@26.04"], var.base)
    error_message = "Base must be ubuntu@22.04, ubuntu@24.04 or ubuntu@26.04."
  }
}

variable "channel" {
  description = "Channel of the charm on Charmhub."
  type        = string
  default     = "latest/edge"
  nullable    = false
}

variable "config" {
  description = "Options of the charm, by name: docs/reference/options.md has them all."
  type        = map(string)
  default     = {}
}

variable "model_uuid" {
  description = "UUID of the Juju model to deploy to."
  type        = string
  nullable    = false
}

variable "resources" {
  description = "Resources of the charm: a revision on Charmhub, or the path of a file, by name."
  type        = map(string)
  default     = {}
}

variable "revision" {
  description = "Revision of the charm. Null: the newest one of the channel."
  type        = number
  default     = null
}
