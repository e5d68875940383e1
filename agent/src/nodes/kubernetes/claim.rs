//! `IpipClaim`: since when a node has its addresses and ranges, as objects that only the API server can date.
//!
//! A claim is immutable, so its `creationTimestamp` dates each of its values. The IpipNode says what a node uses now; its
//! claims say since when. A change of one value adds a claim with that value alone and leaves the age of the others.
//! The claims outlive the IpipNode and are deleted with the Node: an IpipNode that is written again is as old as before.

use super::{crd::IpipNodeSpec, index::parse};
use crate::nodes::inventory::{Node, Value};
use k8s_openapi::jiff::Timestamp;
use kube::{CustomResource, KubeSchema, ResourceExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most claims of a node. Their names end with a digit.
pub const MAX_CLAIMS: usize = 10;

/// Values that a node claims, since the creation of the object.
#[derive(
    Clone, CustomResource, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize,
)]
#[kube(
    group = "ipip.dev",
    version = "v1alpha1",
    kind = "IpipClaim",
    plural = "ipipclaims",
    singular = "ipipclaim",
    shortname = "ipc",
    derive = "PartialEq",
    doc = "Since when a node claims its addresses and ranges: the age of this object decides conflicts between nodes. The node's agent writes this object; it is deleted together with the Node.",
    validation = Rule::new("self.metadata.name.startsWith(self.spec.node + '.') && self.metadata.name.size() == self.spec.node.size() + 2 && self.metadata.name.matches('[0-9]$')").message("the name of a claim is the name of its node, a dot and a digit"),
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.node"}"#,
    printcolumn = r#"{"name":"Realm","type":"string","jsonPath":".spec.realm"}"#,
    printcolumn = r#"{"name":"Internal IPs","type":"string","jsonPath":".spec.internalIPs"}"#,
    printcolumn = r#"{"name":"Pod CIDRs","type":"string","jsonPath":".spec.podCIDRs"}"#,
    printcolumn = r#"{"name":"Endpoint","type":"string","jsonPath":".spec.publicEndpoint"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("a claim is immutable: its creation dates its values")
)]
pub struct IpipClaimSpec {
    /// The name of the node.
    #[schemars(length(min = 1, max = 251))]
    pub node: String,
    /// The realm in which the InternalIPs are claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::crd::realm")]
    pub realm: Option<String>,
    /// InternalIPs.
    #[serde(default, rename = "internalIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::crd::addresses")]
    pub internal_ips: Vec<String>,
    /// Pod CIDRs.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::crd::claimed_networks")]
    pub pod_cidrs: Vec<String>,
    /// The public endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::crd::address")]
    pub public_endpoint: Option<String>,
}

/// The age of a claim: seconds since 1970, then its uid. Both are the API server's, so no client can choose them.
pub type Age = (i64, String);

/// A claim, reduced to what decides conflicts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dated {
    /// Its age.
    pub age: Age,
    /// Its node and values.
    values: Node,
}

impl Dated {
    /// The values of `claim`; those that are never used are left out.
    pub fn of(claim: &IpipClaim) -> Self {
        let spec = &claim.spec;
        Self {
            age: age(claim),
            values: parse(&spec.node, &spec.as_node()).node,
        }
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.values.name
    }

    /// Whether it dates `value`.
    pub fn dates(&self, value: Value<'_>) -> bool {
        self.values.values().any(|it| it == value)
    }
}

/// What the claims of a node lack, and which of them are not needed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Difference {
    /// The claim to create, with its name.
    pub create: Option<(String, IpipClaimSpec)>,
    /// The names of the claims to delete. They date nothing that the node uses, or only what older ones date, too.
    pub delete: Vec<String>,
}

/// Compares the claims of the node `name` with `spec`, which it publishes.
pub fn compare(
    name: &str,
    spec: &IpipNodeSpec,
    claims: &BTreeMap<String, IpipClaim>,
) -> Difference {
    let node = parse(name, spec).node;
    let mut by_age: Vec<(Dated, &str)> = claims
        .iter()
        .map(|(name, claim)| (Dated::of(claim), name.as_str()))
        .collect();
    by_age.sort_by(|(a, _), (b, _)| a.age.cmp(&b.age));
    let dated_by = |value| by_age.iter().position(|(it, _)| it.dates(value));
    let oldest: Vec<(Value<'_>, Option<usize>)> = node
        .values()
        .map(|value| (value, dated_by(value)))
        .collect();
    let mut missing = IpipClaimSpec {
        node: name.to_owned(),
        realm: spec.realm.clone(),
        ..IpipClaimSpec::default()
    };
    for (value, _) in oldest.iter().filter(|(_, dated_by)| dated_by.is_none()) {
        missing.add(*value);
    }
    let is_needed = |n: usize| oldest.iter().any(|(_, dated_by)| *dated_by == Some(n));
    let surplus = (0..by_age.len()).filter(|n| !is_needed(*n));
    let mut delete: Vec<String> = surplus.map(|n| by_age[n].1.to_owned()).collect();
    if missing.is_empty() {
        return Difference {
            create: None,
            delete,
        };
    }
    let mut names = (0..MAX_CLAIMS).map(|n| format!("{name}.{n}"));
    let free = names.find(|it| !claims.contains_key(it));
    // Without room the youngest values become even younger, which can only cost this node something.
    if free.is_none() && delete.is_empty() {
        delete.extend(by_age.last().map(|(_, name)| (*name).to_owned()));
    }
    Difference {
        create: free.map(|free| (free, missing)),
        delete,
    }
}

impl IpipClaimSpec {
    fn as_node(&self) -> IpipNodeSpec {
        IpipNodeSpec {
            internal_ips: self.internal_ips.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
            public_endpoint: self.public_endpoint.clone(),
            realm: self.realm.clone(),
            encapsulation: None,
            probe_key: None,
        }
    }

    fn add(&mut self, value: Value<'_>) {
        match value {
            Value::InternalIp(ip, _) => self.internal_ips.push(ip.to_string()),
            Value::PublicEndpoint(ip) => self.public_endpoint = Some(ip.to_string()),
            Value::PodCidr(network) => self.pod_cidrs.push(network.to_string()),
        }
    }

    fn is_empty(&self) -> bool {
        self.internal_ips.is_empty() && self.pod_cidrs.is_empty() && self.public_endpoint.is_none()
    }
}

/// A claim without a creation time is the youngest.
fn age(claim: &IpipClaim) -> Age {
    let created = claim.metadata.creation_timestamp.as_ref();
    let created = created.map_or(Timestamp::MAX, |time| time.0);
    (created.as_second(), claim.uid().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(ips: &[&str], endpoint: Option<&str>, realm: Option<&str>) -> IpipNodeSpec {
        IpipNodeSpec {
            internal_ips: ips.iter().map(ToString::to_string).collect(),
            pod_cidrs: vec!["10.42.1.0/24".into()],
            public_endpoint: endpoint.map(Into::into),
            realm: realm.map(Into::into),
            encapsulation: None,
            probe_key: None,
        }
    }

    /// The claims of the node a after `step`, which the API server gives the creation time `now`.
    fn write(claims: &mut BTreeMap<String, IpipClaim>, step: Difference, now: u8) {
        if let Some((name, spec)) = step.create {
            let created = format!("2026-01-01T00:00:{now:02}Z");
            let metadata =
                json!({"name": name, "creationTimestamp": created, "uid": now.to_string()});
            let mut claim = IpipClaim::new(&name, spec);
            claim.metadata = serde_json::from_value(metadata).unwrap();
            assert!(claims.insert(name, claim).is_none());
        }
        for name in step.delete {
            claims.remove(&name);
        }
    }

    fn names(claims: &BTreeMap<String, IpipClaim>) -> Vec<&str> {
        claims.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_change_adds_a_claim_for_what_is_new_and_removes_claims_that_date_nothing() {
        let mut claims = BTreeMap::new();
        let first = spec(&["10.0.0.1"], Some("203.0.113.1"), None);
        let step = compare("a", &first, &claims);
        write(&mut claims, step, 1);
        assert_eq!(names(&claims), ["a.0"]);
        assert_eq!(compare("a", &first, &claims), Difference::default());
        for (now, endpoint) in (2..30).zip(["203.0.113.2", "203.0.113.3"].into_iter().cycle()) {
            let changed = spec(&["10.0.0.1"], Some(endpoint), None);
            let step = compare("a", &changed, &claims);
            let (_, created) = step.create.clone().unwrap();
            assert_eq!(
                (&created.internal_ips, &created.pod_cidrs),
                (&vec![], &vec![])
            );
            assert_eq!(created.public_endpoint.as_deref(), Some(endpoint));
            write(&mut claims, step, now);
            let kept = compare("a", &changed, &claims);
            assert_eq!(kept.create, None);
            write(&mut claims, kept, now);
            assert_eq!(claims.len(), 2);
            assert!(claims.contains_key("a.0"), "the age of the other values");
        }
        // Back to the first value, which is as old as ever.
        let step = compare("a", &first, &claims);
        assert_eq!(step.create, None);
        write(&mut claims, step, 40);
        assert_eq!(names(&claims), ["a.0"]);
    }

    #[test]
    fn a_change_of_the_realm_claims_internal_ips_anew_and_nothing_else() {
        let mut claims = BTreeMap::new();
        let first = spec(&["10.0.0.1"], Some("203.0.113.1"), None);
        let step = compare("a", &first, &claims);
        write(&mut claims, step, 1);
        let moved = spec(&["10.0.0.1"], Some("203.0.113.1"), Some("x"));
        let (_, created) = compare("a", &moved, &claims).create.unwrap();
        assert_eq!(created.internal_ips, ["10.0.0.1"]);
        assert_eq!(
            (created.pod_cidrs.len(), created.public_endpoint),
            (0, None)
        );
    }

    #[test]
    fn without_a_free_name_the_youngest_values_lose_their_age() {
        let mut claims = BTreeMap::new();
        let ips: Vec<String> = (1..=12).map(|n| format!("10.0.0.{n}")).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        for n in 1..=10 {
            let step = compare("a", &spec(&ips[..n], None, None), &claims);
            write(&mut claims, step, u8::try_from(n).unwrap());
        }
        assert_eq!(claims.len(), MAX_CLAIMS);
        let all = spec(&ips, None, None);
        let step = compare("a", &all, &claims);
        assert_eq!(
            (&step.create, &step.delete),
            (&None, &vec!["a.9".to_owned()])
        );
        write(&mut claims, step, 20);
        let (name, created) = compare("a", &all, &claims).create.unwrap();
        assert_eq!((name.as_str(), created.internal_ips.len()), ("a.9", 3));
    }
}
