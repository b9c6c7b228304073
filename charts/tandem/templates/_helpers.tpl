{{/* Labels of an object: role is "operator" or "gateway". */}}
{{- define "tandem.labels" -}}
{{ include "tandem.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "tandem.selector" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{/* Rights over the namespaces that are cared for: a ClusterRole for all of them, or a Role in the one. */}}
{{- define "tandem.roleKind" -}}
{{ if .Values.scope.namespace }}Role{{ else }}ClusterRole{{ end }}
{{- end }}

{{/* Name of such a role or of its binding, with the namespace that it is in: a dict of root and name. */}}
{{- define "tandem.roleName" -}}
name: {{ .name }}
{{- with .root.Values.scope.namespace }}
namespace: {{ . }}
{{- end }}
{{- end }}

{{/* The binding of such a role to the ServiceAccount of the same name: a dict of root and role. */}}
{{- define "tandem.roleBinding" -}}
{{- $kind := include "tandem.roleKind" .root -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  {{- include "tandem.roleName" (dict "root" .root "name" (printf "tandem-%s" .role)) | nindent 2 }}
  labels:
    {{- include "tandem.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: tandem-{{ .role }}
subjects:
  - kind: ServiceAccount
    name: tandem-{{ .role }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* The namespace whose Models a bare name means. */}}
{{- define "tandem.defaultNamespace" -}}
{{- $own := .Values.gateway.defaultNamespace -}}
{{- $scope := .Values.scope.namespace -}}
{{- if and $own $scope (ne $own $scope) -}}
{{- fail "gateway.defaultNamespace must be scope.namespace, or empty: Models elsewhere are not served" -}}
{{- end -}}
{{- $own | default $scope | default .Release.Namespace -}}
{{- end }}

{{/* Image of a role: its own, the common one, or the default by name. */}}
{{- define "tandem.image" -}}
{{- $own := (index .root.Values .role).image -}}
{{- $own | default .root.Values.runtime.image | default (printf "tandem.dev/%s:%s" .role .root.Chart.AppVersion) -}}
{{- end }}

{{/* Command of a role as JSON. */}}
{{- define "tandem.command" -}}
{{- $own := (index .root.Values .role).command -}}
{{- $own | default (list .root.Values.runtime.python "-m" (printf "tandem_%s" .role)) | toJson -}}
{{- end }}

{{/* Environment that every role has, then the common one and the role's own, as a JSON list. */}}
{{- define "tandem.env" -}}
{{- $env := list (dict "name" "PYTHONSAFEPATH" "value" "1") (dict "name" "PYTHONUNBUFFERED" "value" "1") -}}
{{- with .root.Values.runtime.pythonPath -}}
{{- $env = append $env (dict "name" "PYTHONPATH" "value" .) -}}
{{- end -}}
{{- concat $env .root.Values.runtime.env (index .root.Values .role).env | toJson -}}
{{- end }}

{{- define "tandem.masterSecret" -}}
{{- .Values.masterSecret.existingSecret | default "tandem-master" -}}
{{- end }}

{{- define "tandem.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tandem.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
