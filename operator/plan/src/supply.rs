//! From which other hosts a host may fetch weights, and over which networks: the fastest that both are on comes first.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use tandem_crds::{InferenceHost, InferenceHostSpec, Link};

use crate::input::HostObservation;

/// Most peers that a host is told of.
pub const MAX_PEERS: usize = 32;
/// Most links to one of them.
pub const MAX_LINKS: usize = 8;

/// The tier of a link whose speed nobody says.
const UNKNOWN_SPEED: u32 = 2;
/// The tier of the address that a host advertises to everybody.
const ADVERTISED: u32 = 4;

/// Another host that keeps or wants a file of this one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub host: String,
    /// Where it serves weights, best first. Never empty.
    pub links: Vec<Path>,
}

/// One way to a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// Lower is faster.
    pub tier: u32,
    /// `host:port`.
    pub address: String,
}

/// The peers of every known host that has any. `asked` are digests of files that hosts were asked to fetch beside those of
/// their workloads.
///
/// Two hosts are peers when both are known, the other serves weights, and a file that one of them keeps or wants is kept or
/// wanted by the other. Of more than [`MAX_PEERS`], those stay that have what the host lacks, then those on faster networks,
/// then those that follow it by name, round in a circle, so that not all hosts ask the same few.
#[must_use]
pub fn peers(
    hosts: &[InferenceHost],
    observed: &BTreeMap<String, HostObservation>,
    asked: &BTreeMap<String, BTreeSet<String>>,
) -> BTreeMap<String, Vec<Peer>> {
    let mut files = Files::default();
    let mut known: Vec<Known> =
        hosts.iter().filter_map(|host| Known::of(host, observed, asked, &mut files)).collect();
    known.sort_by_key(|host| host.name);
    let sharing = sharing(&known);
    // By whom each host was met last, so that it is met once for however many files.
    let mut met = vec![usize::MAX; known.len()];
    let mut peers = BTreeMap::new();
    for (index, asking) in known.iter().enumerate() {
        let lacks: Vec<u32> = asking.wants.difference(&asking.has).copied().collect();
        let mut ranked = Vec::new();
        met[index] = index;
        for &other in asking.has.union(&asking.wants).filter_map(|file| sharing.get(file)).flatten() {
            if std::mem::replace(&mut met[other], index) == index {
                continue;
            }
            let host = &known[other];
            let Some(best) = tier(asking, host) else { continue };
            let round = (other + known.len() - index) % known.len();
            let has_for = lacks.iter().any(|file| host.has.contains(file));
            ranked.push((!has_for, best, round, other));
        }
        if ranked.len() > MAX_PEERS {
            ranked.select_nth_unstable(MAX_PEERS);
            ranked.truncate(MAX_PEERS);
        }
        ranked.sort_unstable();
        let peer =
            |other: usize| Peer { host: known[other].name.to_owned(), links: paths(asking, &known[other]) };
        if !ranked.is_empty() {
            peers.insert(asking.name.to_owned(), ranked.into_iter().map(|(.., other)| peer(other)).collect());
        }
    }
    peers
}

/// Digests as small numbers: hosts are compared pair by pair.
#[derive(Default)]
struct Files<'a>(BTreeMap<&'a str, u32>);

impl<'a> Files<'a> {
    fn number(&mut self, file: &'a str) -> u32 {
        let next = u32::try_from(self.0.len()).expect("fewer files than 2^32");
        *self.0.entry(file).or_insert(next)
    }
}

/// A host that is heard, read once.
struct Known<'a> {
    name: &'a str,
    /// That it advertises to everybody; may be empty.
    address: &'a str,
    /// On which it serves weights.
    port: Option<u16>,
    /// Its networks that others may be on, too, with the tier of its link.
    nets: Vec<(IpNet, u32)>,
    /// Files on its disk.
    has: BTreeSet<u32>,
    /// Files of its workloads, and those that it was asked to fetch.
    wants: BTreeSet<u32>,
}

impl<'a> Known<'a> {
    fn of(
        host: &'a InferenceHost,
        observed: &'a BTreeMap<String, HostObservation>,
        asked: &'a BTreeMap<String, BTreeSet<String>>,
        files: &mut Files<'a>,
    ) -> Option<Self> {
        let name = host.metadata.name.as_deref()?;
        let HostObservation::Known(status) = observed.get(name)? else { return None };
        let weights = status.weights.as_ref();
        let has = weights.into_iter().flat_map(|weights| &weights.files);
        let asked = asked.get(name).into_iter().flatten().map(String::as_str);
        Some(Self {
            name,
            address: &status.address,
            port: weights.and_then(|weights| weights.port),
            nets: status.links.iter().filter_map(|link| Some((net(link)?, tier_of(link)))).collect(),
            has: has.map(|file| files.number(file)).collect(),
            wants: wants(&host.spec).chain(asked).map(|file| files.number(file)).collect(),
        })
    }
}

/// Who keeps or wants each file, by place in the list.
fn sharing(known: &[Known]) -> BTreeMap<u32, Vec<usize>> {
    let mut sharing: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, host) in known.iter().enumerate() {
        for file in host.has.union(&host.wants) {
            sharing.entry(*file).or_default().push(index);
        }
    }
    sharing
}

fn wants(spec: &InferenceHostSpec) -> impl Iterator<Item = &str> {
    let files = spec.workloads.iter().flat_map(|workload| &workload.files);
    files.map(|file| file.sha256.as_str())
}

/// Networks that both are on, with the other host's address there, and the tier of the slower end.
fn shared<'a>(from: &'a Known, to: &'a Known) -> impl Iterator<Item = (&'a IpNet, u32)> {
    let pairs = from.nets.iter().flat_map(|own| to.nets.iter().map(move |other| (own, other)));
    // Bridges that hosts make for containers have the same address on each of them.
    let both =
        pairs.filter(|((own, _), (other, _))| own.addr() != other.addr() && own.trunc() == other.trunc());
    both.map(|((_, own), (net, other))| (net, *own.max(other)))
}

/// The tier of the best way that [`paths`] finds; none where there is none.
fn tier(from: &Known, to: &Known) -> Option<u32> {
    to.port?;
    let advertised = (!to.address.is_empty()).then_some(ADVERTISED);
    shared(from, to).map(|(_, tier)| tier).chain(advertised).min()
}

/// Ways from one host to the port on which another serves weights, best first; none where it serves none.
fn paths(from: &Known, to: &Known) -> Vec<Path> {
    let Some(port) = to.port else { return Vec::new() };
    let mut best: BTreeMap<String, u32> = BTreeMap::new();
    for (net, tier) in shared(from, to) {
        let known = best.entry(at(&net.addr().to_string(), port)).or_insert(u32::MAX);
        *known = tier.min(*known);
    }
    if !to.address.is_empty() {
        best.entry(at(to.address, port)).or_insert(ADVERTISED);
    }
    let mut paths: Vec<Path> = best.into_iter().map(|(address, tier)| Path { tier, address }).collect();
    paths.sort();
    // The advertised address stays, however many networks there are: it is the one that is promised to work.
    if paths.len() > MAX_LINKS
        && let Some(last) = paths.pop()
    {
        paths.truncate(MAX_LINKS - 1);
        paths.push(last);
    }
    paths
}

/// The network of a link, if others can be on it.
fn net(link: &Link) -> Option<IpNet> {
    link.address.parse().ok().filter(|net| !is_local(net))
}

/// Addresses that mean something on their own machine only, or on one of its interfaces.
fn is_local(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.addr().is_loopback() || net.addr().is_unspecified(),
        IpNet::V6(net) => {
            net.addr().is_loopback() || net.addr().is_unspecified() || net.addr().is_unicast_link_local()
        }
    }
}

fn tier_of(link: &Link) -> u32 {
    match link.megabits {
        Some(40_000..) => 0,
        Some(10_000..) => 1,
        Some(1_000..) => 2,
        Some(_) => 3,
        None => UNKNOWN_SPEED,
    }
}

fn at(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;
    use tandem_crds::{InferenceHostStatus, WeightsStatus};

    use super::*;

    fn link(address: &str, megabits: Option<u64>) -> Link {
        Link { address: address.to_owned(), interface: String::new(), megabits }
    }

    fn status(address: &str, links: &[(&str, Option<u64>)], files: &[&str]) -> InferenceHostStatus {
        InferenceHostStatus {
            address: address.to_owned(),
            links: links.iter().map(|(address, megabits)| link(address, *megabits)).collect(),
            weights: Some(WeightsStatus {
                port: Some(7600),
                files: files.iter().map(|&file| file.to_owned()).collect(),
                ..WeightsStatus::default()
            }),
            ..InferenceHostStatus::default()
        }
    }

    fn told(statuses: Vec<(String, InferenceHostStatus)>) -> BTreeMap<String, Vec<Peer>> {
        let hosts: Vec<InferenceHost> =
            statuses.iter().map(|(name, _)| InferenceHost::new(name, InferenceHostSpec::default())).collect();
        let observed =
            statuses.into_iter().map(|(name, status)| (name, HostObservation::Known(Box::new(status))));
        peers(&hosts, &observed.collect(), &BTreeMap::new())
    }

    fn links(peers: &[Peer]) -> Vec<(&str, u32)> {
        peers.iter().flat_map(|peer| &peer.links).map(|path| (path.address.as_str(), path.tier)).collect()
    }

    #[test]
    fn the_slower_end_makes_the_tier_and_the_fastest_network_comes_first() {
        let fast =
            [("10.0.0.1/24", Some(1_000)), ("10.7.0.1/16", Some(100_000)), ("fd00::1/64", Some(40_000))];
        let slow = [("10.0.0.2/24", Some(1_000)), ("10.7.0.2/16", Some(10_000)), ("fd00::2/64", None)];
        let told = told(vec![
            ("a".to_owned(), status("a.example", &fast, &["f"])),
            ("b".to_owned(), status("b.example", &slow, &["f"])),
        ]);
        assert_eq!(
            links(&told["a"]),
            [("10.7.0.2:7600", 1), ("10.0.0.2:7600", 2), ("[fd00::2]:7600", 2), ("b.example:7600", 4)]
        );
        let tiers: Vec<u32> = links(&told["b"]).into_iter().map(|(_, tier)| tier).collect();
        assert_eq!(tiers, [1, 2, 2, 4]);
    }

    #[test]
    fn networks_that_only_look_alike_are_not_shared() {
        let alike =
            [("127.0.0.1/8", None), ("172.17.0.1/16", None), ("fe80::1/64", None), ("192.168.1.5/32", None)];
        let other =
            [("127.0.0.1/8", None), ("172.17.0.1/16", None), ("fe80::2/64", None), ("192.168.1.6/32", None)];
        let told = told(vec![
            ("a".to_owned(), status("10.0.0.1", &alike, &["f"])),
            ("b".to_owned(), status("10.0.0.2", &other, &["f"])),
        ]);
        assert_eq!(links(&told["a"]), [("10.0.0.2:7600", 4)]);
    }

    #[test]
    fn an_advertised_address_on_a_shared_network_has_that_networks_tier() {
        let told = told(vec![
            ("a".to_owned(), status("10.0.0.1", &[("10.0.0.1/24", Some(10_000))], &["f"])),
            ("b".to_owned(), status("10.0.0.2", &[("10.0.0.2/24", Some(10_000))], &["f"])),
        ]);
        assert_eq!(links(&told["a"]), [("10.0.0.2:7600", 1)]);
    }

    #[test]
    fn who_is_silent_or_serves_nothing_or_has_nothing_in_common_is_no_peer() {
        let mut mute = status("10.0.0.4", &[], &["f"]);
        mute.weights.as_mut().unwrap().port = None;
        let statuses = [
            ("a", status("10.0.0.1", &[], &["f"])),
            ("b", status("10.0.0.2", &[], &["f", "g"])),
            ("c", status("10.0.0.3", &[], &["h"])),
            ("mute", mute),
            ("silent", status("10.0.0.5", &[], &["f"])),
        ];
        let hosts: Vec<InferenceHost> =
            statuses.iter().map(|(name, _)| InferenceHost::new(name, InferenceHostSpec::default())).collect();
        let mut observed: BTreeMap<String, HostObservation> = statuses
            .into_iter()
            .map(|(name, status)| (name.to_owned(), HostObservation::Known(Box::new(status))))
            .collect();
        observed.insert("silent".to_owned(), HostObservation::Unknown { since: Timestamp::UNIX_EPOCH });
        let told = peers(&hosts, &observed, &BTreeMap::new());
        let names = |host: &str| -> Vec<&str> { told[host].iter().map(|peer| peer.host.as_str()).collect() };
        assert_eq!(names("a"), ["b"]);
        assert_eq!(names("mute"), ["a", "b"], "it can fetch, though it can't serve");
        assert!(!told.contains_key("c") && !told.contains_key("silent"));
        let asked = BTreeMap::from([("c".to_owned(), BTreeSet::from(["g".to_owned()]))]);
        let told = peers(&hosts, &observed, &asked);
        assert_eq!((told["c"].len(), told["c"][0].host.as_str()), (1, "b"), "it was asked to fetch g");
        assert!(told["b"].iter().any(|peer| peer.host == "c"));
    }

    #[test]
    fn of_too_many_those_stay_that_have_what_is_wanted() {
        let mut statuses: Vec<(String, InferenceHostStatus)> =
            (0..40).map(|n| (format!("h{n:02}"), status(&format!("10.0.0.{n}"), &[], &["common"]))).collect();
        statuses[39].1 = status("10.0.0.39", &[], &["common", "wanted"]);
        let mut hosts: Vec<InferenceHost> =
            statuses.iter().map(|(name, _)| InferenceHost::new(name, InferenceHostSpec::default())).collect();
        hosts[0].spec.workloads.push(workload("wanted"));
        let observed =
            statuses.into_iter().map(|(name, status)| (name, HostObservation::Known(Box::new(status))));
        let told = peers(&hosts, &observed.collect(), &BTreeMap::new());
        let names: Vec<&str> = told["h00"].iter().map(|peer| peer.host.as_str()).collect();
        assert_eq!((names.len(), names[0], names[1]), (MAX_PEERS, "h39", "h01"));
        assert_eq!(told["h30"][0].host, "h31", "each starts with those that follow it");
    }

    fn workload(file: &str) -> tandem_crds::WorkloadSpec {
        serde_json::from_value(serde_json::json!({
            "id": "w", "epoch": 1, "deployment": {"namespace": "llm", "name": "kimi"}, "model": "kimi",
            "source": "file:///models", "files": [{"name": "f.gguf", "sha256": file, "bytes": 1}], "quant": "Q8_0",
            "contextTokens": 1, "poolTokens": 1, "memoryBytes": 1,
        }))
        .unwrap()
    }

    #[derive(Clone, Debug)]
    struct Drawn {
        known: bool,
        serves: bool,
        advertised: bool,
        links: Vec<(u8, u8, Option<u64>)>,
        has: Vec<u8>,
        wants: Vec<u8>,
    }

    fn drawn() -> impl Strategy<Value = Drawn> {
        let speed = prop::option::of(prop_oneof![Just(100_u64), Just(1_000), Just(25_000), Just(80_000)]);
        let link = (0_u8..4, 0_u8..4, speed);
        (
            prop::bool::weighted(0.9),
            prop::bool::weighted(0.9),
            any::<bool>(),
            prop::collection::vec(link, 0..12),
            prop::collection::vec(0_u8..4, 0..3),
            prop::collection::vec(0_u8..4, 0..2),
        )
            .prop_map(|(known, serves, advertised, links, has, wants)| Drawn {
                known,
                serves,
                advertised,
                links,
                has,
                wants,
            })
    }

    fn world(drawn: &[Drawn]) -> (Vec<InferenceHost>, BTreeMap<String, HostObservation>) {
        let mut hosts = Vec::new();
        let mut observed = BTreeMap::new();
        for (index, drawn) in drawn.iter().enumerate() {
            let name = format!("h{index}");
            let mut host = InferenceHost::new(&name, InferenceHostSpec::default());
            host.spec.workloads = drawn.wants.iter().map(|file| workload(&file.to_string())).collect();
            hosts.push(host);
            let links: Vec<(String, Option<u64>)> = drawn
                .links
                .iter()
                .map(|(net, machine, speed)| (format!("10.{net}.{index}.{machine}/16"), *speed))
                .collect();
            let links: Vec<(&str, Option<u64>)> =
                links.iter().map(|(address, speed)| (address.as_str(), *speed)).collect();
            let files: Vec<String> = drawn.has.iter().map(u8::to_string).collect();
            let files: Vec<&str> = files.iter().map(String::as_str).collect();
            let address = if drawn.advertised { format!("192.0.2.{index}") } else { String::new() };
            let mut status = status(&address, &links, &files);
            if !drawn.serves {
                status.weights.as_mut().unwrap().port = None;
            }
            let seen = if drawn.known {
                HostObservation::Known(Box::new(status))
            } else {
                HostObservation::Unknown { since: Timestamp::UNIX_EPOCH }
            };
            observed.insert(name, seen);
        }
        (hosts, observed)
    }

    proptest! {
        /// Nobody is its own peer, lists are bounded and best first, the order of hosts changes nothing, and while all fit, two
        /// hosts that both serve are peers of each other or not at all, over equally fast links.
        #[test]
        fn peers_are_mutual_and_bounded(drawn in prop::collection::vec(drawn(), 0..40)) {
            let (hosts, observed) = world(&drawn);
            let told = peers(&hosts, &observed, &BTreeMap::new());
            let reversed: Vec<InferenceHost> = hosts.iter().rev().cloned().collect();
            prop_assert_eq!(&told, &peers(&reversed, &observed, &BTreeMap::new()));
            for (name, peers) in &told {
                prop_assert!(peers.len() <= MAX_PEERS && peers.iter().all(|peer| peer.host != *name));
                let mut names: Vec<&str> = peers.iter().map(|peer| peer.host.as_str()).collect();
                names.sort_unstable();
                names.dedup();
                prop_assert_eq!(names.len(), peers.len(), "nobody twice");
                for peer in peers {
                    prop_assert!(!peer.links.is_empty() && peer.links.len() <= MAX_LINKS);
                    prop_assert!(peer.links.is_sorted());
                }
            }
            if drawn.len() > MAX_PEERS {
                return Ok(());
            }
            let best = |from: &str, to: &str| {
                let peer = told.get(from)?.iter().find(|peer| peer.host == to)?;
                Some(peer.links[0].tier)
            };
            for (a, from) in drawn.iter().enumerate() {
                for (b, to) in drawn.iter().enumerate().filter(|(b, _)| *b != a) {
                    if from.known && to.known && to.serves && to.advertised {
                        let files = |drawn: &Drawn| -> BTreeSet<u8> {
                            drawn.has.iter().chain(&drawn.wants).copied().collect()
                        };
                        let shares = !files(from).is_disjoint(&files(to));
                        prop_assert_eq!(best(&format!("h{a}"), &format!("h{b}")).is_some(), shares);
                    }
                    if from.serves && to.serves && from.advertised && to.advertised {
                        let (a, b) = (format!("h{a}"), format!("h{b}"));
                        prop_assert_eq!(best(&a, &b), best(&b, &a), "{} and {}", a, b);
                    }
                }
            }
        }
    }
}
