//! The three forms of the manifests define the same objects. `UPDATE=1` writes `install.yaml`.

use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::tools::program;
use ipip_testkit::{harness::LoneTest, lone_tests, shell};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub const TESTS: &[LoneTest] = lone_tests![
    install_yaml_is_what_kustomize_makes,
    the_chart_with_its_defaults_is_install_yaml,
    the_chart_refuses_values_that_it_does_not_know,
    prepare_reads_the_kubeconfigs_that_the_agent_knows,
    the_folders_of_every_distribution_agree_with_the_volumes_and_settings,
    settings_of_the_chart_reach_both_containers,
    the_manifests_for_a_migration_differ_only_in_the_selection_of_nodes,
    the_chart_passes_the_networks_to_clean_up_after_to_prepare,
    no_security_module_keeps_a_container_from_the_bpffs_that_it_mounts,
];

fn manifests() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests"))
}

/// The objects of a file of manifests, by kind and name.
fn objects(text: &str) -> Result<BTreeMap<String, Value>> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text)?;
    objects
        .into_iter()
        .map(|object| {
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            Ok((name, object))
        })
        .collect()
}

/// `helm`, from the tools or the PATH.
fn helm(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(program("helm").unwrap_or_else(|_| "helm".into()));
    command
        .args([
            "template",
            "ipip",
            "--namespace=kube-system",
            "--include-crds",
            // A helm that was built without release flags assumes an old version.
            "--kube-version=1.36.0",
        ])
        .arg(manifests().join("helm/ipip"))
        .args(arguments);
    Ok(command)
}

/// The manifests that Kustomize makes of a folder.
fn kustomized(folder: &str) -> Result<String> {
    let mut command = Command::new(program("kubectl")?);
    command.arg("kustomize").arg(manifests().join(folder));
    shell::printed("kubectl kustomize", command.output())
}

/// The manifests that the chart makes of its values and these arguments.
fn charted(arguments: &[&str]) -> Result<String> {
    let output = helm(arguments)?
        .output()
        .context("helm is missing; remedy: build it with `cargo xtask tools`")?;
    shell::printed("helm template", Ok(output))
}

/// The containers of every pod template of these manifests, with the names of object and container.
fn containers(text: &str) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for (object, value) in objects(text)? {
        let pod = &value["spec"]["template"]["spec"];
        for list in ["initContainers", "containers"] {
            for container in pod[list].as_array().into_iter().flatten() {
                found.push((format!("{object} {}", container["name"]), container.clone()));
            }
        }
    }
    Ok(found)
}

fn install_yaml_is_what_kustomize_makes() -> Result<()> {
    let made = kustomized("")?;
    let path = manifests().join("install.yaml");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &made)?;
    }
    ensure!(
        fs::read_to_string(&path)? == made,
        "install.yaml is out of date; remedy: run with UPDATE=1, and review the difference"
    );
    Ok(())
}

fn the_chart_with_its_defaults_is_install_yaml() -> Result<()> {
    let chart = objects(&charted(&[])?)?;
    let plain = objects(&fs::read_to_string(manifests().join("install.yaml"))?)?;
    ensure!(
        chart.keys().eq(plain.keys()),
        "{:?}\n{:?}",
        chart.keys(),
        plain.keys()
    );
    for (name, object) in &plain {
        ensure!(chart[name] == *object, "{name}:\n{}\n{object}", chart[name]);
    }
    Ok(())
}

fn the_chart_refuses_values_that_it_does_not_know() -> Result<()> {
    for wrong in [
        "encapsulation=udp",
        "env.PATH=x",
        "image.pullPolicy=Sometimes",
        "kubernetesServicePort=0",
        "distribution=other",
        "cni.binDir=relative",
        "appArmorProfile.type=None",
        "cleanUpAfter={flanel}",
    ] {
        let output = helm(&["--set", wrong])?.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{wrong} is accepted");
        ensure!(text.contains("schema"), "{wrong}: {text}");
    }
    Ok(())
}

/// The folder in the host of a container's setting, by the container's mounts and the pod's volumes.
fn on_host(pod: &Value, container: &Value, setting: &str) -> Result<PathBuf> {
    let env = container["env"].as_array().context("no env")?;
    let is_setting = |it: &&Value| it["name"] == setting;
    let path = env
        .iter()
        .find(is_setting)
        .context("the setting is absent")?;
    let path = path["value"].as_str().context("no value")?;
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    // The longest mount that contains the path.
    let mount = mounts
        .iter()
        .filter(|it| Path::new(path).starts_with(it["mountPath"].as_str().unwrap_or("-")))
        .max_by_key(|it| it["mountPath"].as_str().map(str::len))
        .with_context(|| format!("{path} is on no mount"))?;
    ensure!(mount["readOnly"] != true, "{path} is read-only");
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    let volume = volumes.iter().find(|it| it["name"] == mount["name"]);
    let volume = volume.and_then(|it| it["hostPath"]["path"].as_str());
    let inside = Path::new(path).strip_prefix(mount["mountPath"].as_str().unwrap_or_default())?;
    Ok(Path::new(volume.context("no hostPath")?).join(inside))
}

fn the_folders_of_every_distribution_agree_with_the_volumes_and_settings() -> Result<()> {
    let defaults = ["/opt/cni/bin", "/etc/cni/net.d"];
    let debian = ["/usr/lib/cni", "/etc/cni/net.d"];
    let microk8s = [
        "/var/snap/microk8s/current/opt/cni/bin",
        "/var/snap/microk8s/current/args/cni-network",
    ];
    let own = [
        "--set=cni.binDir=/usr/lib/cni",
        "--set=cni.confDir=/etc/kubernetes/cni",
    ];
    let over = [
        "--set=distribution=microk8s",
        "--set=cni.binDir=/usr/lib/cni",
    ];
    let mut forms = Vec::new();
    for distribution in distributions()? {
        let folders = match &*distribution {
            "microk8s" => microk8s,
            "debian" => debian,
            _ => defaults,
        };
        let text = charted(&[&format!("--set=distribution={distribution}")])?;
        forms.push((distribution, text, folders));
    }
    let others = [
        ("base", kustomized("")?, defaults),
        (
            "own folders",
            charted(&own)?,
            ["/usr/lib/cni", "/etc/kubernetes/cni"],
        ),
        (
            "own folder over a preset",
            charted(&over)?,
            ["/usr/lib/cni", microk8s[1]],
        ),
        (
            "overlay for microk8s",
            kustomized("overlays/microk8s")?,
            microk8s,
        ),
        ("overlay for Debian", kustomized("overlays/debian")?, debian),
        (
            "overlay for CRI-O",
            kustomized("overlays/crio-1.30")?,
            defaults,
        ),
    ];
    forms.extend(others.map(|(form, text, folders)| (form.to_owned(), text, folders)));
    for (form, text, [bin, conf]) in forms {
        let objects = objects(&text)?;
        let pod = &objects[r#""DaemonSet" "ipip-agent""#]["spec"]["template"]["spec"];
        let (prepare, agent) = (&pod["initContainers"][0], &pod["containers"][0]);
        for (container, setting, wanted) in [
            (agent, "IPIP_CNI_BIN_DIR", bin),
            (agent, "IPIP_CNI_CONF_DIR", conf),
            (prepare, "IPIP_CNI_CONF_DIR", conf),
        ] {
            let found = on_host(pod, container, setting);
            let found = found.with_context(|| format!("{form}: {setting}"))?;
            ensure!(
                found == Path::new(wanted),
                "{form}: {setting} is {found:?}, not {wanted}"
            );
        }
        let mounts = agent["volumeMounts"].to_string();
        let count = mounts.matches(r#""name":"cni-"#).count();
        ensure!(count == 2, "{form}: {mounts}");
    }
    Ok(())
}

/// The distributions that the chart's schema lists.
fn distributions() -> Result<Vec<String>> {
    let schema = fs::read_to_string(manifests().join("helm/ipip/values.schema.json"))?;
    let schema: Value = serde_json::from_str(&schema)?;
    let listed = &schema["properties"]["distribution"]["enum"];
    Ok(serde_json::from_value(listed.clone())?)
}

fn prepare_reads_the_kubeconfigs_that_the_agent_knows() -> Result<()> {
    let printed = shell::printed(
        "ipip-agent --print-default-config",
        Command::new(shell::own_program("ipip-agent")?)
            .arg("--print-default-config")
            .output(),
    )?;
    let settings: Value = serde_saphyr::from_str(&printed)?;
    let known = settings["kubeletKubeconfigs"].as_array();
    let agent: Vec<&str> = known
        .context("no setting kubeletKubeconfigs")?
        .iter()
        .filter_map(Value::as_str)
        // The file that `prepare` itself writes.
        .filter(|path| !path.starts_with("/run/"))
        .collect();
    for text in [kustomized("")?, charted(&[])?] {
        let containers = containers(&text)?;
        let prepare = containers.iter().find(|(name, _)| name.contains("prepare"));
        let env = prepare.context("no container prepare")?.1["env"].clone();
        let mut env = env.as_array().context("no env")?.iter();
        let setting = env.find(|it| it["name"] == "IPIP_KUBELET_KUBECONFIGS");
        let setting = setting.context("no setting")?["value"].as_str();
        let in_host: Vec<&str> = setting
            .unwrap_or_default()
            .split(',')
            .filter_map(|path| path.strip_prefix("/host"))
            .collect();
        ensure!(in_host == agent, "{in_host:?}\n{agent:?}");
    }
    Ok(())
}

fn settings_of_the_chart_reach_both_containers() -> Result<()> {
    let text = charted(&["--set=env.IPIP_CNI_CONF_FILE=05-x.conflist"])?;
    let with_it = containers(&text)?
        .into_iter()
        .filter(|(_, container)| container["env"].to_string().contains("05-x.conflist"));
    ensure!(with_it.count() == 2, "{text}");
    Ok(())
}

fn the_manifests_for_a_migration_differ_only_in_the_selection_of_nodes() -> Result<()> {
    let mut migration = objects(&kustomized("migration")?)?;
    let (name, agents) = migration
        .iter_mut()
        .find(|(name, _)| name.starts_with("\"DaemonSet\""))
        .context("no DaemonSet")?;
    let selector = &mut agents["spec"]["template"]["spec"]["nodeSelector"];
    let selected = selector.as_object_mut().context("no selector")?;
    let label = selected.remove("ipip.dev/migrated");
    ensure!(label == Some("true".into()), "{name}: {label:?}");
    ensure!(migration == objects(&kustomized("")?)?);
    Ok(())
}

fn the_chart_passes_the_networks_to_clean_up_after_to_prepare() -> Result<()> {
    let made = charted(&["--set", "cleanUpAfter={flannel,calico}"])?;
    let containers = containers(&made)?;
    let prepare = containers.iter().find(|(name, _)| name.contains("prepare"));
    let variables = prepare.context("no container prepare")?.1["env"].as_array();
    let mut variables = variables.into_iter().flatten();
    let passed = variables.find(|variable| variable["name"] == "IPIP_CLEAN_UP_AFTER");
    let value = passed.map(|variable| &variable["value"]);
    ensure!(value == Some(&"flannel,calico".into()), "{value:?}");
    Ok(())
}

/// AppArmor's default profile denies writes to bpffs, SELinux's default type denies bpf(2) too.
fn no_security_module_keeps_a_container_from_the_bpffs_that_it_mounts() -> Result<()> {
    let file = |name| fs::read_to_string(manifests().join(name));
    for (text, seccomp) in [
        (kustomized("")?, "RuntimeDefault"),
        (kustomized("overlays/microk8s")?, "RuntimeDefault"),
        (kustomized("overlays/debian")?, "RuntimeDefault"),
        (kustomized("overlays/crio-1.30")?, "Unconfined"),
        (file("install.yaml")?, "RuntimeDefault"),
        (file("uninstall.yaml")?, "RuntimeDefault"),
        (charted(&[])?, "RuntimeDefault"),
        (
            charted(&["--set=seccompProfile.type=Unconfined"])?,
            "Unconfined",
        ),
    ] {
        let mut mounted = 0;
        for (name, container) in containers(&text)? {
            let mounts = container["volumeMounts"].as_array();
            let mut mounts = mounts.into_iter().flatten();
            if !mounts.any(|mount| mount["mountPath"] == "/sys/fs/bpf") {
                continue;
            }
            mounted += 1;
            let security = &container["securityContext"];
            if security["privileged"] == true {
                continue;
            }
            for (field, wanted) in [
                ("appArmorProfile", "Unconfined"),
                ("seLinuxOptions", "spc_t"),
                ("seccompProfile", seccomp),
            ] {
                let found = &security[field]["type"];
                ensure!(found == wanted, "{name}: {field} {found}, not {wanted}");
            }
        }
        ensure!(mounted > 0, "no container mounts bpffs:\n{text}");
    }
    Ok(())
}
