output "app_name" {
  description = "Name of the deployed application."
  value       = juju_application.kata.name
}

output "requires" {
  description = "Endpoints that the charm requires."
  value = {
    containerd   = "containerd"
    kube_control = "kube-control"
    node         = "node"
    untrusted    = "untrusted"
  }
}

output "provides" {
  description = "Endpoints that the charm provides."
  value = {
    cos_agent = "cos-agent"
  }
}
