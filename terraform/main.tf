# A subordinate: it has no units, machines or constraints of its own, and gets them by integration.
resource "juju_application" "kata" {
  name       = var.app_name
  model_uuid = var.model_uuid

  charm {
    name     = "kata"
    base     = var.base
    channel  = var.channel
    revision = var.revision
  }

  config    = var.config
  resources = var.resources
}
