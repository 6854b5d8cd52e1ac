{{- define "spliceway.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "spliceway.labels" -}}
{{ include "spliceway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "spliceway.selector" -}}
app.kubernetes.io/name: spliceway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of pods with a network of their own: with a sidecar that nobody ends, a Job would never be done. */}}
{{- define "spliceway.unmeshed" -}}
{{- if eq .Values.mode "istio" -}}
sidecar.istio.io/inject: "false"
istio.io/dataplane-mode: none
{{- end -}}
{{- end }}

{{- define "spliceway.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "spliceway.name" .) }}
{{- end }}

{{/* All releases of a cluster have the same: one agent of all writes what all nodes report. */}}
{{- define "spliceway.lease" -}}
spliceway-policy-status
{{- end }}

{{- define "spliceway.leaseNamespace" -}}
{{ .Values.policyStatus.leaseNamespace | default "kube-system" }}
{{- end }}

{{/* emit, remove, or empty: off, which YAML may have read as false. */}}
{{- define "spliceway.applies" -}}
{{- $mode := (.Values.istio | default dict).authorizationPolicies | default "off" -}}
{{- if ne $mode "off" -}}{{ $mode }}{{- end -}}
{{- end }}

{{- define "spliceway.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ if and (eq .Values.proxy.kind "envoy") (not (include "spliceway.inPods" .)) }}-envoy{{ end }}
{{- end -}}
{{- end }}

{{/* Whether pods run the proxy, and agents do not. */}}
{{- define "spliceway.inPods" -}}
{{- if and .Values.proxy.daemonSet (not .Values.proxy.backToAgent) -}}yes{{- end -}}
{{- end }}

{{/* The image of the proxy's pods: the agent's but for what is set. */}}
{{- define "spliceway.proxyImage" -}}
{{- $image := .Values.proxy.image -}}
{{- $repository := $image.repository | default .Values.image.repository -}}
{{- $digest := $image.digest | default (ternary "" .Values.image.digest (not (empty $image.tag))) -}}
{{- if $digest -}}
{{ $repository }}@{{ $digest }}
{{- else -}}
{{ $repository }}:{{ $image.tag | default .Values.image.tag | default .Chart.AppVersion }}{{ if eq .Values.proxy.kind "envoy" }}-envoy{{ end }}
{{- end -}}
{{- end }}

{{/* What of the agent's configuration the proxy is started with: when that changes, its pods do. */}}
{{- define "spliceway.proxyConfig" -}}
{{- $config := include "spliceway.config" . | fromYaml -}}
{{- $proxy := omit $config.proxy "managed" "listenerPorts" "headersTimeout" "idleTimeout" "maxHeadKib" "maxHeaders" "explainDenied" -}}
{{- toYaml (dict "proxy" $proxy "stateDir" $config.stateDir) -}}
{{- end }}

{{/* What a schema can't say in words that help. */}}
{{- define "spliceway.check" -}}
{{- if not (and (hasKey .Values "policyStatus") (hasKey .Values "istio")) -}}
{{- $missing := ternary "istio" "policyStatus" (hasKey .Values "policyStatus") -}}
{{- fail (printf "%s is missing: these are the values of an older chart, without the defaults of this one (helm upgrade with --reset-then-reuse-values in place of --reuse-values), or a file of values has `%s:` with nothing behind it" $missing $missing) -}}
{{- end -}}
{{- if and (include "spliceway.applies" .) (not .Values.policyStatus.enabled) -}}
{{- fail (printf "istio.authorizationPolicies: %v needs policyStatus.enabled: the agent that writes the status of policies applies them" .Values.istio.authorizationPolicies) -}}
{{- end -}}
{{- if and .Values.uninstall (eq (include "spliceway.applies" .) "emit") -}}
{{- fail "uninstall: istio.authorizationPolicies is emit, and nobody would maintain what was applied: first set it to remove, and wait until nothing is left (docs/istio-policy.md); off leaves everything there" -}}
{{- end -}}
{{- if and .Values.proxy.backToAgent (not .Values.proxy.daemonSet) -}}
{{- fail "proxy.backToAgent is the step before proxy.daemonSet is false: now it has no meaning" -}}
{{- end -}}
{{- $drain := dig "proxy" "limits" "drain" 30 .Values.agent.config -}}
{{- $least := add (ceil $drain) 5 -}}
{{- if and .Values.proxy.daemonSet (eq .Values.proxy.kind "embedded") (lt (int64 .Values.proxy.terminationGracePeriodSeconds) $least) -}}
{{- fail (printf "proxy.terminationGracePeriodSeconds: %d is too short for agent.config.proxy.limits.drain (%v): connections would be reset before that; at least %d" (int .Values.proxy.terminationGracePeriodSeconds) $drain $least) -}}
{{- end -}}
{{- $roll := .Values.proxy.updateStrategy.rollingUpdate | default dict -}}
{{- $surge := ne (dig "maxSurge" 1 $roll | toString | trimSuffix "%") "0" -}}
{{- $unavailable := ne (dig "maxUnavailable" 0 $roll | toString | trimSuffix "%") "0" -}}
{{- if and (eq .Values.proxy.updateStrategy.type "RollingUpdate") (eq $surge $unavailable) -}}
{{- fail (printf "proxy.updateStrategy.rollingUpdate: maxSurge and maxUnavailable are both %s" (ternary "set: Kubernetes takes one of them, and the other must be 0" "0: then no pod could be replaced" $surge)) -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.podMonitor.enabled needs metrics.enabled: without it metrics are on the loopback device only" -}}
{{- end -}}
{{- if and (not .Values.rbac.create) (not .Values.serviceAccount.name) -}}
{{- fail "rbac.create is false: serviceAccount.name must name the account that the agent shall have" -}}
{{- end -}}
{{- range $field, $value := dict "enforcement" "enforcement" "node" "the downward API (spec.nodeName) and notReadyTaint" "source" "the chart" "stateDir" "agent.stateDirectory" "bpffs" "the chart" "admin" "the chart" "killSwitch" "killSwitch" "cni" "cni" "status" "policyStatus" -}}
{{- if hasKey $.Values.agent.config $field -}}
{{- fail (printf "agent.config.%s: is not set there, but by %s" $field $value) -}}
{{- end -}}
{{- end -}}
{{- range $path, $value := dict "proxy.kind" "proxy.kind" "proxy.managed" "proxy.daemonSet" "metrics.listen" "metrics.enabled, metrics.address and metrics.port" "metrics.health" "metrics.port" "cgroups.proxy" "the chart" "istio.enabled" "mode" "istio.authorizationPolicies" "istio.authorizationPolicies" "istio.trustDomain" "istio.trustDomain" "istio.rootNamespace" "istio.rootNamespace" "istio.pathNormalization" "istio.pathNormalization" "istio.ambiguous" "istio.ambiguous" "istio.withoutOwnNode" "istio.withoutOwnNode" -}}
{{- $parts := splitList "." $path -}}
{{- $section := index $.Values.agent.config (first $parts) -}}
{{- if and (kindIs "map" $section) (hasKey $section (last $parts)) -}}
{{- fail (printf "agent.config.%s: is not set there, but by %s" $path $value) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The agent's own YAML: what the pod is made for, and agent.config merged into it. */}}
{{- define "spliceway.config" -}}
{{- $made := dict
  "source" (dict "kubernetes" dict)
  "enforcement" .Values.enforcement
  "stateDir" .Values.agent.stateDirectory
  "proxy" (dict "kind" .Values.proxy.kind "managed" (empty (include "spliceway.inPods" .)))
  "metrics" (dict "listen" (printf "%s:%d" (.Values.metrics.enabled | ternary .Values.metrics.address "127.0.0.1") (int .Values.metrics.port)) "health" (printf "127.0.0.1:%d" (int .Values.metrics.port)))
  "killSwitch" (dict "file" "/host/etc/spliceway/disabled" "annotation" .Values.killSwitch.annotation)
-}}
{{- if .Values.cni.enabled -}}
{{- $_ := set $made "cni" (dict "enabled" true "confDir" "/host/etc/cni/net.d" "nodeConfDir" .Values.cni.confDir "binDir" "/host/opt/cni/bin" "timeout" .Values.cni.timeout "onFailure" (.Values.cni.onFailure | default (ternary "fail" "allow" (eq .Values.enforcement "enforce"))) "exemptNamespaces" .Values.cni.exemptNamespaces) -}}
{{- end -}}
{{- if .Values.policyStatus.enabled -}}
{{- $_ := set $made "status" (dict "write" true "namespace" (include "spliceway.leaseNamespace" .) "lease" (include "spliceway.lease" .) "writesPerSecond" .Values.policyStatus.writesPerSecond) -}}
{{- end -}}
{{- $istio := dict -}}
{{- if eq .Values.mode "istio" -}}
{{- $_ := set $istio "enabled" true -}}
{{- end -}}
{{- if include "spliceway.applies" . -}}
{{- $istio = merge $istio .Values.istio -}}
{{- else -}}
{{- /* AuthorizationPolicies that agents enforce are read by these, whatever is applied. */ -}}
{{- range $field, $default := dict "trustDomain" "cluster.local" "rootNamespace" "istio-system" -}}
{{- $name := dig $field "" ($.Values.istio | default dict) | default $default -}}
{{- if ne $name $default -}}
{{- $_ := set $istio $field $name -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- /* By these AuthorizationPolicies are read, too, whether any are written or not. */ -}}
{{- range $field, $usual := dict "trustDomain" "cluster.local" "rootNamespace" "istio-system" -}}
{{- $told := index $.Values.istio $field | default $usual -}}
{{- if ne $told $usual -}}
{{- $_ := set $istio $field $told -}}
{{- end -}}
{{- end -}}
{{- if $istio -}}
{{- $_ := set $made "istio" $istio -}}
{{- end -}}
{{- with .Values.notReadyTaint -}}
{{- $_ := set $made "node" (dict "notReadyTaint" .) -}}
{{- end -}}
{{- toYaml (mustMergeOverwrite (deepCopy .Values.agent.config) $made) -}}
{{- end }}

{{/*
Named capabilities in place of `privileged`; preflight says what each is for. Root, since bpffs, cgroups and /run/netns are root's.
AppArmor's default profile forbids mounts, and writing sysctls of the network, which the agent does.
*/}}
{{- define "spliceway.securityContext" -}}
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add: [BPF, NET_ADMIN, NET_RAW, PERFMON, SYS_ADMIN, SYS_PTRACE]
seccompProfile: {type: RuntimeDefault}
appArmorProfile: {type: Unconfined}
{{- with .Values.seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "spliceway.mounts" -}}
- {name: config, mountPath: /etc/spliceway, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: state, mountPath: {{ .Values.agent.stateDirectory }}}
- {name: run, mountPath: /run/spliceway}
- {name: bpffs, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
- {name: cgroup, mountPath: /sys/fs/cgroup, mountPropagation: HostToContainer}
- {name: netns, mountPath: /run/netns, readOnly: true, mountPropagation: HostToContainer}
- {name: xtables-lock, mountPath: /run/xtables.lock}
- {name: kill-switch, mountPath: /host/etc/spliceway}
{{- /* Also without the plugin: one that was enabled before must be taken out of the chain, or no pod starts. */}}
- {name: cni-conf, mountPath: /host/etc/cni/net.d}
{{- if .Values.cni.enabled }}
- {name: cni-bin, mountPath: /host/opt/cni/bin}
{{- end }}
{{- end }}

{{- define "spliceway.volumes" -}}
- name: config
  configMap: {name: {{ include "spliceway.name" . }}}
# The root is read-only; nothing of this is kept.
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
- name: state
  hostPath: {path: {{ .Values.agent.stateDirectory }}, type: DirectoryOrCreate}
# The admin socket, which the command line on the node uses, too; results of the self-test.
- name: run
  hostPath: {path: /run/spliceway, type: DirectoryOrCreate}
# What is pinned there outlives the pod, since it is the node's file system.
- name: bpffs
  hostPath: {path: /sys/fs/bpf, type: Directory}
# The whole hierarchy: programs are attached to the pods' cgroup, and the proxy has its own at the top.
- name: cgroup
  hostPath: {path: /sys/fs/cgroup, type: Directory}
# Namespaces of pods, also of those to come.
- name: netns
  hostPath: {path: /run/netns, type: DirectoryOrCreate}
# One lock for all who use iptables on this node.
- name: xtables-lock
  hostPath: {path: /run/xtables.lock, type: FileOrCreate}
- name: kill-switch
  hostPath: {path: {{ .Values.killSwitch.hostDirectory }}, type: DirectoryOrCreate}
- name: cni-conf
  hostPath: {path: {{ .Values.cni.confDir }}, type: DirectoryOrCreate}
{{- if .Values.cni.enabled }}
- name: cni-bin
  hostPath: {path: {{ .Values.cni.binDir }}, type: DirectoryOrCreate}
{{- end }}
{{- end }}

{{- define "spliceway.env" -}}
- name: SPLICEWAY_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- /* For commands in the pod: the kill switch's file is the node's, and has another path here. */}}
- name: SPLICEWAY_CONFIG
  value: /etc/spliceway/agent.yaml
{{- end }}

{{/* What every pod that touches a node has. */}}
{{- define "spliceway.pod" -}}
serviceAccountName: {{ include "spliceway.serviceAccount" . }}
# Interfaces, routes and pods' veths are the node's.
hostNetwork: true
# The proxy outlives the agent's pod, so that no connection breaks at an upgrade: in a PID namespace of the pod's own it would be killed
# with it. It is also how the agent finds the node's cgroup namespace, and programs of others.
hostPID: true
# Nothing is looked up by name.
dnsPolicy: Default
{{ include "spliceway.placement" . }}
volumes: {{- include "spliceway.volumes" . | nindent 2 }}
{{- end }}

{{/* On which nodes. */}}
{{- define "spliceway.placement" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{ end -}}
tolerations: {{- toYaml .Values.tolerations | nindent 2 }}
nodeSelector:
  kubernetes.io/os: linux
  {{- with .Values.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: kubernetes.io/arch, operator: In, values: {{ toJson .Values.architectures }}}
{{- end }}
