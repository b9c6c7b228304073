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
