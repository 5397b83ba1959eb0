{{- define "monitor.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "monitor.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Labels of everything; `component` says which part. */}}
{{- define "monitor.labels" -}}
{{ include "monitor.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "monitor.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The prefix without a slash at its end; empty at the root. */}}
{{- define "monitor.rootPath" -}}
{{- if .Values.ingress.enabled }}{{ .Values.ingress.path | trimSuffix "/" }}{{ end }}
{{- end }}

{{- /* OpenShift chooses user and group itself, and refuses others. */}}
{{- define "monitor.openshift" -}}
{{- if or .Values.openshift (.Capabilities.APIVersions.Has "security.openshift.io/v1") }}yes{{ end }}
{{- end }}

{{- /* Of the root context and a user. */}}
{{- define "monitor.podSecurity" -}}
{{- $user := last . -}}
runAsNonRoot: true
{{- if not (include "monitor.openshift" (first .)) }}
runAsUser: {{ $user }}
runAsGroup: {{ $user }}
fsGroup: {{ $user }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "monitor.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* The port in a `host:port`, of the last host in a list; empty if there is none. Of the value. */}}
{{- define "monitor.portIn" -}}
{{- $host := . | default "" | toString }}
{{- if regexMatch "(^|,)(\\[[^]]+\\]|[^]:,[]+):[0-9]+$" $host }}{{ $host | splitList ":" | last }}{{ end }}
{{- end }}

{{- /* A policy sees the port of the server itself, which is the usual one where the chart makes it. */}}
{{- define "monitor.redisPort" -}}
{{ ternary "6379" (include "monitor.portIn" .Values.settings.REDIS_HOST | default (.Values.settings.REDIS_PORT | toString)) .Values.redis.create }}
{{- end }}

{{- define "monitor.postgresPort" -}}
{{ ternary "5432" (include "monitor.portIn" .Values.settings.POSTGRES_HOST | default (.Values.settings.POSTGRES_PORT | toString)) .Values.postgres.create }}
{{- end }}
