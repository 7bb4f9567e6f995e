{{- define "tandem.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tandem.labels" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tandem
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "tandem.selector" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "tandem.image" -}}
{{- $registry := .root.Values.image.registry -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end }}{{ .repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "tandem.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tandem.operatorUrl" -}}
https://{{ include "tandem.name" . }}-operator.{{ .Release.Namespace }}.svc:7443
{{- end -}}

{{- define "tandem.proxyEnv" -}}
{{- with .Values.proxy.https }}
- {name: HTTPS_PROXY, value: {{ . | quote }}}
{{- end }}
{{- with .Values.proxy.noProxy }}
- {name: NO_PROXY, value: {{ . | quote }}}
{{- end }}
{{- end -}}

{{- /* What a pod needs to join: the authorities that the operator publishes, and a token of its own. */ -}}
{{- define "tandem.joinVolumes" -}}
- name: trust
  configMap:
    name: tandem-trust
- name: token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: tandem-operator
          expirationSeconds: 3600
{{- end -}}

{{- define "tandem.joinMounts" -}}
- {name: trust, mountPath: /var/run/tandem/trust, readOnly: true}
- {name: token, mountPath: /var/run/tandem/token, readOnly: true}
{{- end -}}

{{- define "tandem.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Root, since the folder on the host is root's; nothing that root may do beyond that. */ -}}
{{- define "tandem.agentSecurity" -}}
runAsUser: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* How clients reach gateways. */}}
{{- define "tandem.gatewayScheme" -}}
{{- ternary "https" "http" (not (empty .Values.gateway.tls.secretName)) -}}
{{- end }}
