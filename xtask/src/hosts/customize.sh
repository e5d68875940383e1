#!/bin/sh
# Makes a Debian in the folder $1 ready to become a node, as the guides of Debian and Kubernetes say.
set -eu
root=$1

# The second disk has programs of Kubernetes and images. An emulated machine on a loaded host finds it late.
mkdir -p "$root/srv/programs"
cat > "$root/etc/fstab" <<'END'
/dev/vda / ext4 defaults 0 1
/dev/vdb /srv/programs ext4 ro,x-systemd.device-timeout=10min 0 2
END
for program in kubelet kubeadm kube-proxy; do
    ln -s "/srv/programs/$program" "$root/usr/bin/$program"
done

# As in Kubernetes' own packages, cri-tools excepted.
mkdir -p "$root/etc/systemd/system/kubelet.service.d" "$root/etc/kubernetes/manifests"
cat > "$root/etc/systemd/system/kubelet.service" <<'END'
[Unit]
Description=kubelet: The Kubernetes Node Agent
Wants=network-online.target
After=network-online.target containerd.service
RequiresMountsFor=/srv/programs
# Without it, the kubelet ends and starts again until the machine joins, which an emulated machine does slowly.
ConditionPathExists=/var/lib/kubelet/config.yaml
[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10
[Install]
WantedBy=multi-user.target
END
cat > "$root/etc/systemd/system/kubelet.service.d/10-kubeadm.conf" <<'END'
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS
END
# kubeadm runs it in a pod, from an image that this project does not build.
cat > "$root/etc/systemd/system/kube-proxy.service" <<'END'
[Unit]
Description=kube-proxy
Wants=network-online.target
After=network-online.target
RequiresMountsFor=/srv/programs
ConditionPathExists=/etc/kubernetes/kube-proxy.yaml
[Service]
ExecStart=/usr/bin/kube-proxy --config=/etc/kubernetes/kube-proxy.yaml
Restart=always
RestartSec=5
[Install]
WantedBy=multi-user.target
END
# kubeadm requires it.
echo net.ipv4.ip_forward=1 > "$root/etc/sysctl.d/kubernetes.conf"

# Generated at the first boot.
: > "$root/etc/machine-id"
rm -f "$root/etc/hostname"
# The machines reach no resolver, but pods with the host's resolver need the file.
echo nameserver 10.9.0.1 > "$root/etc/resolv.conf"
echo 127.0.0.1 localhost > "$root/etc/hosts"
chroot "$root" systemctl --quiet enable systemd-networkd kubelet kube-proxy
# They would run during a test.
chroot "$root" systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
