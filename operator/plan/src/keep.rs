//! Which files a host keeps although no workload there uses them: they might be the last copy of a model that some deployment
//! wants. Fetching them again takes hours; keeping them costs disk. The answer is sticky, so that nothing moves without need.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tandem_crds::{InferenceDeploymentSpec, InferenceDeploymentStatus, ResolvedFile};

use crate::input::Model;
use crate::parse::{Host, World};

/// Most digests that a host's spec lists, as the API has it.
pub(crate) const MAX_KEPT: usize = 256;

/// Most digests that a host's report lists, as the API has it: a file that a full list lacks may be there all the same.
const MAX_REPORTED: usize = 128;

/// The digests that hosts keep, sorted, by the host's place in the world: of those that shall keep others than they do.
///
/// A host that keeps a wanted file goes on keeping it while it has it, or while nobody hears what it has. Where fewer than
/// one and `hostFailures` known hosts keep a file, known holders join them: those that run it first, then by name. Hosts that
/// are being emptied don't count where others have it.
pub(crate) fn keepers(world: &World) -> BTreeMap<usize, Vec<String>> {
    let wanted = wanted(world);
    let mut kept: Vec<BTreeSet<&str>> = world
        .hosts
        .iter()
        .map(|host| {
            let listed = Listed::of(host);
            let prior = host.spec.keep_files.iter().map(String::as_str);
            // While the observer itself is suspect, nothing is let go of.
            prior
                .filter(|digest| {
                    world.frozen.is_some() || (wanted.contains_key(digest) && stays(host, &listed, digest))
                })
                .collect()
        })
        .collect();
    // Known hosts by the wanted files that they say they have, in the hosts' order.
    let mut holders: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, host) in world.hosts.iter().enumerate().filter(|(_, host)| host.is_known()) {
        for digest in Listed::of(host).files.into_iter().filter(|digest| wanted.contains_key(*digest)) {
            holders.entry(digest).or_default().push(index);
        }
    }
    for (digest, copies) in &wanted {
        let holders = holders.remove(digest).unwrap_or_default();
        let keeps = |host: usize| kept[host].contains(digest);
        for index in join(world, digest, *copies, holders, keeps, |host| kept[host].len() < MAX_KEPT) {
            kept[index].insert(digest);
        }
    }
    let others = kept.into_iter().enumerate();
    let others = others.filter(|(index, kept)| {
        !world.hosts[*index].spec.keep_files.iter().map(String::as_str).eq(kept.iter().copied())
    });
    others.map(|(index, kept)| (index, kept.into_iter().map(str::to_owned).collect())).collect()
}

/// Whether a host goes on keeping a wanted file.
pub(crate) fn stays(host: &Host, listed: &Listed, digest: &str) -> bool {
    !host.is_known() || listed.may_have(digest)
}

/// Which holders of a wanted file begin to keep it, so that `copies` hosts do. `keeps` says which do already, `has_room` which
/// may keep one more.
pub(crate) fn join(
    world: &World,
    digest: &str,
    copies: usize,
    holders: impl IntoIterator<Item = usize>,
    keeps: impl Fn(usize) -> bool,
    has_room: impl Fn(usize) -> bool,
) -> Vec<usize> {
    // On hosts that stay, and on those that are being emptied.
    let (mut staying, mut leaving) = (0, 0);
    let (mut others, mut last) = (Vec::new(), Vec::new());
    for index in holders {
        let host = &world.hosts[index];
        if keeps(index) {
            *(if host.is_draining() { &mut leaving } else { &mut staying }) += 1;
        } else if has_room(index) {
            let list = if host.is_draining() { &mut last } else { &mut others };
            list.push((!uses(host, digest), index));
        }
    }
    others.sort_unstable();
    others.truncate(copies.saturating_sub(staying));
    last.sort_unstable();
    last.truncate(copies.saturating_sub(staying + others.len() + leaving));
    others.into_iter().chain(last).map(|(_, index)| index).collect()
}

/// Files that deployments want, and on how many hosts at least.
fn wanted<'a>(world: &'a World<'a>) -> BTreeMap<&'a str, usize> {
    let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
    for deployment in &world.deployments {
        let copies = copies(deployment.spec);
        for file in files(deployment.model, deployment.prior) {
            let most = wanted.entry(&file.sha256).or_default();
            *most = copies.max(*most);
        }
    }
    wanted
}

/// On how many hosts a deployment's files are kept, at least.
pub(crate) fn copies(spec: &InferenceDeploymentSpec) -> usize {
    1 + spec.redundancy.host_failures as usize
}

/// A deployment's files; those known last, while they are being found out or can't be had.
pub(crate) fn files<'a>(
    model: &'a Model,
    prior: Option<&'a InferenceDeploymentStatus>,
) -> &'a [ResolvedFile] {
    match model {
        Model::Resolved(resolved) => &resolved.files,
        Model::Resolving | Model::Failed(_) => {
            let model = prior.and_then(|prior| prior.model.as_ref());
            model.map_or(&[], |model| &model.files)
        }
    }
}

fn uses(host: &Host, digest: &str) -> bool {
    host.spec.workloads.iter().flat_map(|workload| &workload.files).any(|file| file.sha256 == digest)
}

/// What a host's newest report says of its files.
pub(crate) struct Listed<'a> {
    pub(crate) files: BTreeSet<&'a str>,
    /// Whether it lists all that it has.
    pub(crate) whole: bool,
}

impl<'a> Listed<'a> {
    pub(crate) fn of(host: &Host<'a>) -> Self {
        let weights = host.report.and_then(|report| report.weights.as_ref());
        let files = weights.map_or(&[][..], |weights| &weights.files);
        Self {
            files: files.iter().map(String::as_str).collect(),
            whole: weights.is_some() && files.len() < MAX_REPORTED,
        }
    }

    fn may_have(&self, digest: &str) -> bool {
        !self.whole || self.files.contains(digest)
    }
}
