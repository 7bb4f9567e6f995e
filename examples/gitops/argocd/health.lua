-- How Argo CD reads an InferenceDeployment: put this text into the ConfigMap argocd-cm under the key
-- resource.customizations.health.inference.tandem.dev_InferenceDeployment
--
-- It follows the same rules as kstatus, which Flux and `helm --wait` go by: Stalled is failed, Reconciling or a status of an older
-- generation is in progress, and a deployment that serves stays healthy while a lost copy is replaced.
local progressing = function(message)
  return { status = "Progressing", message = message }
end

if obj.status == nil or obj.status.conditions == nil then
  return progressing("the operator has not seen it yet")
end
if obj.metadata.generation ~= nil and obj.status.observedGeneration ~= obj.metadata.generation then
  return progressing("the operator has not seen this generation yet")
end

local conditions = {}
for _, condition in ipairs(obj.status.conditions) do
  conditions[condition.type] = condition
end
local is = function(type, status)
  return conditions[type] ~= nil and conditions[type].status == status
end

if is("Stalled", "True") then
  return { status = "Degraded", message = conditions["Stalled"].message }
end
if is("Reconciling", "True") then
  return progressing(conditions["Reconciling"].message)
end
local ready = conditions["Ready"]
if ready == nil then
  return progressing("the operator has not said whether it serves")
end
if ready.reason == "ScaledToZero" then
  return { status = "Suspended", message = ready.message }
end
if ready.status == "True" then
  local message = ready.message
  if is("Redundant", "False") then
    message = message .. "; " .. conditions["Redundant"].message
  end
  return { status = "Healthy", message = message }
end
return progressing(ready.message)
