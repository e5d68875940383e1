//! The Kubernetes objects: on each node a web server in the pod network and one in the host network, Services
//! for them, and a webhook.

use super::Workloads;
use crate::kubernetes::worker::{AGNHOST, pod_on_node};
use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};

/// Port of the web servers in the pod network.
pub const WEB: u16 = 80;
/// `hostPort` of the web servers in the pod network.
pub const HOST_PORT: u16 = 8088;
/// Port of the web servers in the host network.
pub const HOST_WEB: u16 = 8090;
/// NodePort of all web servers, `externalTrafficPolicy: Cluster`.
pub const NODE_PORT: u16 = 30080;
/// NodePort of the web server on b1, `externalTrafficPolicy: Local`.
pub const LOCAL_NODE_PORT: u16 = 30081;

/// All objects, as one JSON list, which is also YAML.
pub fn all(workloads: &Workloads) -> Result<String> {
    let mut items = Vec::new();
    for node in workloads.nodes() {
        items.push(pod(node));
        items.push(host_pod(node));
    }
    items.push(service("web", &json!({ "all": "web" }), &json!({})));
    items.push(service(
        "everywhere",
        &json!({ "all": "web" }),
        &node_port(NODE_PORT, "Cluster"),
    ));
    items.push(service(
        "local",
        &json!({ "app": "on-b1" }),
        &node_port(LOCAL_NODE_PORT, "Local"),
    ));
    items.extend(webhook()?);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    Ok(list.to_string())
}

/// The pod `on-NODE`. A test may delete and re-create it.
pub fn pod(node: &str) -> Value {
    let script = format!(
        "echo this is {node}; (while sleep 1; do echo tick of {node}; done) & \
         exec /agnhost netexec --http-port={WEB} --udp-port=-1"
    );
    let mut pod = pod_on_node(&format!("on-{node}"), node, AGNHOST, &script);
    pod["metadata"]["labels"]["all"] = json!("web");
    pod["spec"]["containers"][0]["ports"] =
        json!([{ "containerPort": WEB, "hostPort": HOST_PORT }]);
    pod
}

/// The pod `host-NODE`, in the host network.
pub fn host_pod(node: &str) -> Value {
    let script = format!("exec /agnhost netexec --http-port={HOST_WEB} --udp-port=-1");
    let mut pod = pod_on_node(&format!("host-{node}"), node, AGNHOST, &script);
    pod["spec"]["hostNetwork"] = json!(true);
    pod
}

fn service(name: &str, selector: &Value, more: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": { "selector": selector, "ports": [{ "port": WEB, "targetPort": WEB }] },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    if let Some(port) = more["nodePort"].as_u64() {
        service["spec"]["ports"][0]["nodePort"] = json!(port);
        service["spec"]["nodePort"].take();
    }
    service
}

fn node_port(port: u16, policy: &str) -> Value {
    json!({ "type": "NodePort", "nodePort": port, "externalTrafficPolicy": policy })
}

/// A webhook on b1, which denies each ConfigMap with the label `ask: hook`.
fn webhook() -> Result<Vec<Value>> {
    const PORT: u16 = 8443;
    let name = "hook.default.svc".to_string();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name])?;
    let flags = "--tls-cert-file=/tls/tls.crt --tls-private-key-file=/tls/tls.key";
    let script = format!("exec /agnhost webhook --port={PORT} {flags}");
    let mut pod = pod_on_node("hook", "b1", AGNHOST, &script);
    pod["spec"]["volumes"] = json!([{ "name": "tls", "secret": { "secretName": "hook" } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "tls", "mountPath": "/tls" }]);
    let mut service = service("hook", &json!({ "app": "hook" }), &json!({}));
    service["spec"]["ports"] = json!([{ "port": 443, "targetPort": PORT }]);
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "hook" },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": cert.pem(), "tls.key": signing_key.serialize_pem() },
    });
    let authority = k8s_openapi::ByteString(cert.pem().into_bytes());
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": "hook" },
        "webhooks": [{
            "name": "hook.default.svc",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 3,
            "failurePolicy": "Fail",
            "objectSelector": { "matchLabels": { "ask": "hook" } },
            "rules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["configmaps"],
            }],
            "clientConfig": {
                "caBundle": authority,
                "service": { "namespace": "default", "name": "hook", "path": "/always-deny" },
            },
        }],
    });
    Ok(vec![secret, pod, service, configuration])
}
