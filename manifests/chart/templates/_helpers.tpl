{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "kmesh.labels" -}}
app.kubernetes.io/name: kmesh
{{- end }}

{{- define "kmesh.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* One folder or the socket of the platform, by its key, unless a value says otherwise. */}}
{{- define "kmesh.path" -}}
{{- $table := .root.Files.Get "platforms.yaml" | fromYaml -}}
{{- .value | default (get (get $table (.root.Values.platform | default "generic")) .key) -}}
{{- end }}

{{- define "kmesh.binDir" }}{{ include "kmesh.path" (dict "root" . "value" .Values.cni.binDir "key" "binDir") }}{{ end }}
{{- define "kmesh.confDir" }}{{ include "kmesh.path" (dict "root" . "value" .Values.cni.confDir "key" "confDir") }}{{ end }}
{{- define "kmesh.socket" }}{{ include "kmesh.path" (dict "root" . "value" .Values.cni.criSocket "key" "socket") }}{{ end }}

{{/* A probe's host and port, of an address that is bound: all addresses of the node are asked at its own. */}}
{{- define "kmesh.probe" -}}
{{- $port := regexFind "[0-9]+$" .bind -}}
{{- $host := trimSuffix (printf ":%s" $port) .bind | trimPrefix "[" | trimSuffix "]" -}}
{{- if or (eq $host "") (eq $host "0.0.0.0") }}{{ $host = "127.0.0.1" }}{{ else if eq $host "::" }}{{ $host = "::1" }}{{ end -}}
httpGet: {host: {{ $host | quote }}, port: {{ $port }}, path: {{ .path }}}
{{- end }}

{{/* What both containers of the installer have in common. */}}
{{- define "kmesh.install" -}}
image: {{ include "kmesh.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
- --owner={{ .Release.Namespace }}/{{ .Release.Name }}
- --mode={{ .Values.cni.mode }}
- --on-unready={{ .Values.enroll.onUnready }}
- --cri-socket={{ include "kmesh.socket" . }}
{{- with .Values.platform }}
- --platform={{ . }}
{{- end }}
{{- with .Values.cni.binDir }}
- --bin-dir={{ . }}
{{- end }}
{{- with .Values.cni.confDir }}
- --conf-dir={{ . }}
{{- end }}
env:
- name: KMESH_NODE
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
resources:
  {{- toYaml .Values.resources.install | nindent 2 }}
# Root, because the node's folders of plugins and networks are root's; beyond that, no capability is needed.
securityContext:
  runAsUser: 0
  runAsGroup: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
- name: cni-bin
  mountPath: {{ include "kmesh.binDir" . }}
- name: cni-conf
  mountPath: {{ include "kmesh.confDir" . }}
- name: cni-cache
  mountPath: /var/lib/cni
  readOnly: true
{{- if ne .Values.cni.criSocket "none" }}
- name: runtime
  mountPath: {{ include "kmesh.socket" . | dir }}
  readOnly: true
{{- end }}
- name: run
  mountPath: /run/kmesh
- name: state
  mountPath: /var/lib/kmesh
- name: token
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}
