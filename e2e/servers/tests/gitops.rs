//! The GitOps example: rendered, applied twice without a difference, and at peace with whoever scales; by `kubectl`, and by Flux.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the fleet is small")]

#[path = "../../../operator/plan/tests/fleet/mod.rs"]
mod fleet;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fleet::{Fleet, spec};
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tandem_crds::{InferenceDeployment, InferenceDeploymentStatus};
use tandem_plan::Model;
use tandem_servers::{ControlPlane, Server, Tool, Tools, User};

fn example(folder: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/gitops").join(folder).display().to_string()
}

fn output(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), format!("{out}{said}"))
}

#[tokio::test]
async fn models_are_applied_twice_without_a_difference_and_a_scaled_count_stays() {
    let plane = ControlPlane::start().await.unwrap();
    let models = example("models");
    let apply = || plane.kubectl(&["apply", "--server-side", "--field-manager=flux", "-k", &models]).unwrap();
    apply();
    let diff = || {
        let mut diff = plane.kubectl_command(User::ADMIN).unwrap();
        output(diff.args(["diff", "--server-side", "--field-manager=flux", "-k", &models]))
    };
    let (same, text) = diff();
    assert!(same, "{text}");
    // Without an operator, the next write is the one that keeps the defaults of the status.
    apply();
    let version = || {
        let path = "jsonpath={.metadata.resourceVersion} {.metadata.generation}";
        plane.kubectl(&["get", "infd", "kimi", "-n", "llm", "-o", path]).unwrap()
    };
    let first = version();
    apply();
    assert_eq!(version(), first);
    let mut diff = plane.kubectl_command(User::ADMIN).unwrap();
    let (same, text) = output(diff.args(["diff", "--server-side", "--field-manager=flux", "-k", &models]));
    assert!(same, "{text}");

    plane.kubectl(&["scale", "infd/kimi", "-n", "llm", "--replicas=3"]).unwrap();
    let scaled = version();
    apply();
    assert_eq!(version(), scaled);
    let path = "jsonpath={.spec.replicas}";
    assert_eq!(plane.kubectl(&["get", "infd", "kimi", "-n", "llm", "-o", path]).unwrap(), "3");
    let (same, text) = output(plane.kubectl_command(User::ADMIN).unwrap().args([
        "diff",
        "--server-side",
        "--field-manager=flux",
        "-k",
        &models,
    ]));
    assert!(same, "{text}");
}

#[tokio::test]
async fn what_is_for_flux_and_argo_is_rendered() {
    let plane = ControlPlane::start().await.unwrap();
    let rendered = plane.kubectl(&["kustomize", &example("argocd")]).unwrap();
    for part in [
        "kind: Application",
        "resource.customizations.health.inference.tandem.dev_InferenceDeployment",
        "Progressing",
        // What CreateNamespace makes keeps the standard that the release's pods keep.
        "pod-security.kubernetes.io/enforce: restricted",
    ] {
        assert!(rendered.contains(part), "{part} is not in\n{rendered}");
    }
    let flux = fs::read_to_string(example("flux/tandem.yaml")).unwrap();
    let mut paths = Vec::new();
    for document in flux.split("\n---") {
        let object: Value = serde_yaml::from_str(document).unwrap();
        paths.push((object["kind"].clone(), object["spec"]["path"].clone()));
    }
    let kustomization = |path: &str| (json!("Kustomization"), json!(format!("./examples/gitops/{path}")));
    let repository = (json!("GitRepository"), Value::Null);
    assert_eq!(paths, [repository, kustomization("flux/release"), kustomization("models")]);
    let release = plane.kubectl(&["kustomize", &example("flux/release")]).unwrap();
    for part in ["kind: HelmRelease", "pod-security.kubernetes.io/enforce: restricted"] {
        assert!(release.contains(part), "{part} is not in\n{release}");
    }
}

/// Flux asks for the health of what it has applied every 5 s.
const STEP: Duration = Duration::from_secs(60);
/// The account that `flux install` makes for it, with the rights that it gives it.
const CONTROLLER: &str = "system:serviceaccount:flux-system:kustomize-controller";

/// kustomize-controller on a cluster, without the two controllers beside it: source-controller, which would fetch from Git, and
/// helm-controller, which would install the chart. The test writes the statuses of their objects.
struct Flux<'a> {
    plane: &'a ControlPlane,
    client: kube::Client,
    controller: Server,
}

impl<'a> Flux<'a> {
    async fn start(plane: &'a ControlPlane) -> Self {
        let tools = Tools::find().unwrap();
        let program = tools.program(Tool::Flux, "kustomize-controller").unwrap();
        let definitions = tools.dir(Tool::Flux).unwrap().join("definitions");
        let apply = |file: &Path| {
            plane.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()]).unwrap();
        };
        apply(&definitions);
        let file = plane.dir().join("helmreleases.json");
        fs::write(&file, helm_releases().to_string()).unwrap();
        apply(&file);
        plane.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).unwrap();
        plane.kubectl(&["create", "namespace", "flux-system"]).unwrap();
        let account = "--serviceaccount=flux-system:kustomize-controller";
        let bind =
            ["create", "clusterrolebinding", "cluster-reconciler", "--clusterrole=cluster-admin", account];
        plane.kubectl(&bind).unwrap();

        // It empties this folder of what another one like it has left.
        let scratch = plane.dir().join("flux");
        fs::create_dir(&scratch).unwrap();
        let mut command = Command::new(program);
        command
            .args([
                "--metrics-addr=0",
                "--health-addr=0",
                "--requeue-dependency=1s",
                "--log-encoding=console",
            ])
            .env("KUBECONFIG", plane.kubeconfig(User { name: CONTROLLER, groups: &[] }).unwrap())
            .env("RUNTIME_NAMESPACE", "flux-system")
            .env("TMPDIR", scratch);
        let controller = Server::start("kustomize-controller", command, plane.dir()).unwrap();
        let client = plane.client(User::ADMIN).await.unwrap();
        Self { plane, client, controller }
    }

    fn api(&self, kind: &str, version: &str, namespace: &str) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap();
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.client.clone(), namespace, &kind)
    }

    /// Waits until a Kustomization says so.
    async fn until(&self, name: &str, says: impl Fn(&Value) -> bool) -> Value {
        let api = self.api("Kustomization", "kustomize.toolkit.fluxcd.io/v1", "flux-system");
        let said = await_condition(api.clone(), name, |object: Option<&DynamicObject>| {
            object.is_some_and(|object| says(&object.data["status"]))
        });
        let Ok(said) = tokio::time::timeout(STEP, said).await else {
            let status = api.get(name).await.unwrap().data["status"].take();
            panic!("{name} says after {STEP:?}: {status:#}\n{}", self.controller.last_words(20));
        };
        said.unwrap().unwrap().data["status"].take()
    }

    /// `flux reconcile`: waits until the round that was asked for is over.
    async fn reconcile(&self, name: &str, round: &str) -> Value {
        let annotation = format!("reconcile.fluxcd.io/requestedAt={round}");
        let kustomization = format!("kustomization/{name}");
        self.plane
            .kubectl(&["annotate", "--overwrite", "-n", "flux-system", &kustomization, &annotation])
            .unwrap();
        self.until(name, |status| status["lastHandledReconcileAt"] == round).await
    }

    /// Waits until it has looked at deployments this many times more.
    fn look(&mut self, times: usize) {
        let plane = self.plane;
        let looks = || {
            let events = plane.audit().unwrap().into_iter().filter(|event| {
                let on =
                    event.object_ref.as_ref().is_some_and(|object| object.resource == "inferencedeployments");
                on && event.user.username == CONTROLLER && matches!(event.verb.as_str(), "get" | "list")
            });
            events.count()
        };
        let enough = looks() + times;
        self.controller.wait(STEP, || looks() >= enough).unwrap();
    }
}

/// Instead of helm-controller's own definition: whatever a HelmRelease says is taken.
fn helm_releases() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "helmreleases.helm.toolkit.fluxcd.io"},
        "spec": {
            "group": "helm.toolkit.fluxcd.io",
            "scope": "Namespaced",
            "names": {"kind": "HelmRelease", "plural": "helmreleases", "singular": "helmrelease"},
            "versions": [{
                "name": "v2", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}
            }]
        }
    })
}

/// Serves this repository's examples as source-controller would; the artifact of a source's status.
async fn artifact() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let packed = Command::new("tar").arg("-czC").arg(root).arg("examples/gitops").output().unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let (bytes, digest) = (packed.stdout.len(), hex::encode(Sha256::digest(&packed.stdout)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/tandem.tar.gz", listener.local_addr().unwrap());
    let served = axum::Router::new()
        .route("/tandem.tar.gz", axum::routing::get(move || async move { packed.stdout.clone() }));
    tokio::spawn(async { axum::serve(listener, served).await });
    json!({
        "url": url, "path": "gitrepository/flux-system/tandem/tandem.tar.gz", "digest": format!("sha256:{digest}"),
        "size": bytes, "revision": "main@sha1:0000000000000000000000000000000000000001",
        "lastUpdateTime": "2026-03-01T12:00:00Z"
    })
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<(&'a str, &'a str)> {
    let found = status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)?;
    Some((found["status"].as_str()?, found["reason"].as_str()?))
}

fn is_ready(status: &Value) -> bool {
    condition(status, "Ready") == Some(("True", "ReconciliationSucceeded"))
}

/// What the planner says of a deployment while its first copy loads, when it serves, and when its model can't be had.
fn words() -> [InferenceDeploymentStatus; 3] {
    let status = |fleet: &Fleet| fleet.deployment("kimi").status.clone().unwrap();
    let mut fleet = Fleet::new();
    for host in ["a", "b", "c"] {
        fleet.join(host, 1);
    }
    fleet.apply("kimi", spec(1, 1), 1);
    fleet.plan();
    let loading = status(&fleet);
    fleet.settle();
    let serving = status(&fleet);
    let mut fleet = Fleet::new();
    fleet.join("a", 1);
    fleet.apply_model("kimi", spec(1, 0), Model::Failed("the source has no such file".to_owned()));
    fleet.plan();
    [loading, serving, status(&fleet)]
}

/// The operator's word on the generation that is stored.
async fn operator_says(
    models: &Api<InferenceDeployment>,
    status: &InferenceDeploymentStatus,
) -> InferenceDeployment {
    let mut status = status.clone();
    status.observed_generation = models.get("kimi").await.unwrap().metadata.generation;
    for condition in &mut status.conditions {
        condition.observed_generation = status.observed_generation;
    }
    let operator =
        PatchParams { field_manager: Some("tandem-operator".to_owned()), ..PatchParams::default() };
    models.patch_status("kimi", &operator, &Patch::Merge(json!({"status": status}))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn flux_waits_for_a_model_that_loads_and_leaves_alone_what_others_scale() {
    let plane = ControlPlane::start().await.unwrap();
    let mut flux = Flux::start(&plane).await;
    let models: Api<InferenceDeployment> = Api::namespaced(flux.client.clone(), "llm");
    let ready = json!({"type": "Ready", "status": "True", "reason": "Succeeded", "message": "",
        "observedGeneration": 1, "lastTransitionTime": "2026-03-01T12:00:00Z"});
    let stand_in = PatchParams::default();

    // The source's artifact comes, and with it the release; nothing of the models before the release is there.
    plane.kubectl(&["apply", "-f", &example("flux/tandem.yaml")]).unwrap();
    let source = flux.api("GitRepository", "source.toolkit.fluxcd.io/v1", "flux-system");
    let fetched =
        json!({"status": {"observedGeneration": 1, "conditions": [ready], "artifact": artifact().await}});
    source.patch_status("tandem", &stand_in, &Patch::Merge(&fetched)).await.unwrap();
    flux.until("tandem", |status| condition(status, "Healthy") == Some(("Unknown", "Progressing"))).await;
    flux.until("models", |status| condition(status, "Ready") == Some(("False", "DependencyNotReady"))).await;
    assert!(models.get_opt("kimi").await.unwrap().is_none());
    let releases = flux.api("HelmRelease", "helm.toolkit.fluxcd.io/v2", "tandem-system");
    let installed = json!({"status": {"observedGeneration": 1, "conditions": [ready]}});
    releases.patch_status("tandem", &stand_in, &Patch::Merge(&installed)).await.unwrap();
    flux.until("tandem", is_ready).await;

    // In progress while no operator has seen the model, and while its copies load.
    let [loading, serving, stalled] = words();
    let in_progress = |status: &Value| {
        condition(status, "Healthy") == Some(("Unknown", "Progressing"))
            && condition(status, "Reconciling") == Some(("True", "Progressing"))
            && condition(status, "Ready") == Some(("Unknown", "Progressing"))
    };
    flux.until("models", in_progress).await;
    flux.look(2);
    flux.until("models", in_progress).await;
    operator_says(&models, &loading).await;
    flux.look(2);
    flux.until("models", in_progress).await;
    operator_says(&models, &serving).await;
    // It writes conditions first, and the rest of a status after them.
    let revision = &fetched["status"]["artifact"]["revision"];
    flux.until("models", |status| is_ready(status) && status["lastAppliedRevision"] == *revision).await;

    // A second round writes nothing; nor does one after somebody has scaled.
    let before = models.get("kimi").await.unwrap();
    assert!(is_ready(&flux.reconcile("models", "second").await));
    assert_eq!(models.get("kimi").await.unwrap().metadata, before.metadata);
    plane.kubectl(&["scale", "infd/kimi", "-n", "llm", "--replicas=3"]).unwrap();
    let scaled = operator_says(&models, &serving).await;
    assert!(is_ready(&flux.reconcile("models", "third").await));
    let after = models.get("kimi").await.unwrap();
    assert_eq!((after.spec.replicas, after.metadata), (3, scaled.metadata));

    // What only a person can help fails at once, hours before the time that a model may take.
    operator_says(&models, &stalled).await;
    let status = flux.reconcile("models", "fourth").await;
    assert_eq!(condition(&status, "Ready"), Some(("False", "HealthCheckFailed")), "{status:#}");
}
