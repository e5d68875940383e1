{{/* The folders of distributions whose container runtime looks for CNI files elsewhere. */}}
{{- define "ipip.presets" -}}
debian:
  binDir: /usr/lib/cni
microk8s:
  binDir: /var/snap/microk8s/current/opt/cni/bin
  confDir: /var/snap/microk8s/current/args/cni-network
{{- end -}}

{{/* The values `cni`, completed by the preset of the distribution and by the defaults. */}}
{{- define "ipip.cni" -}}
{{- $presets := include "ipip.presets" . | fromYaml -}}
{{- $preset := get $presets .Values.distribution | default dict -}}
binDir: {{ .Values.cni.binDir | default $preset.binDir | default "/opt/cni/bin" }}
confDir: {{ .Values.cni.confDir | default $preset.confDir | default "/etc/cni/net.d" }}
{{- end -}}
