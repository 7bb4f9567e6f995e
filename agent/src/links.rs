//! The networks that peers may reach this host by: what the system says, and what a person knows better.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use tandem_crds::Link;

/// What a status may list.
const MOST: usize = 16;
/// Longest name of an interface in a status.
const LONGEST_NAME: usize = 64;
/// Where Linux says what an interface is.
const SYSFS: &str = "/sys/class/net";

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    interface: String,
    network: IpNet,
    loopback: bool,
    megabits: Option<u64>,
}

/// Every network that another host may share, the host's own address first, then the fastest. `given` overrides what the
/// system says of an address, and adds what it does not say.
pub(crate) fn links(own: &str, given: &[Link]) -> Vec<Link> {
    choose(seen(), own, given)
}

fn choose(seen: Vec<Seen>, own: &str, given: &[Link]) -> Vec<Link> {
    let own: Option<IpAddr> = own.parse().ok();
    let is_own = |link: &Link| address(&link.address).is_some_and(|address| own == Some(address));
    let mut links: Vec<Link> = given.to_vec();
    for Seen { interface, network, loopback, megabits } in seen {
        let ip = network.addr();
        // A loopback address is a network of its own, and shared by hosts of one machine only.
        let useful = if own == Some(ip) { true } else { !loopback && is_shared(&network) };
        let Some(found) = links.iter_mut().find(|link| address(&link.address) == Some(ip)) else {
            if useful {
                links.push(Link { address: network.to_string(), interface, megabits });
            }
            continue;
        };
        found.interface = interface;
        found.megabits = found.megabits.or(megabits);
    }
    links.sort_by(|a, b| (is_own(b), b.megabits, &a.address).cmp(&(is_own(a), a.megabits, &b.address)));
    links.dedup_by(|a, b| a.address == b.address);
    links.truncate(MOST);
    links
}

fn address(network: &str) -> Option<IpAddr> {
    Some(network.parse::<IpNet>().ok()?.addr())
}

/// Whether somebody else can be in this network: overlays give each host a network of one address, and link-local addresses of
/// the sixth version mean nothing without an interface's name.
fn is_shared(network: &IpNet) -> bool {
    let alone = network.prefix_len() == network.max_prefix_len();
    let link_local = matches!(network.addr(), IpAddr::V6(address) if address.is_unicast_link_local());
    !alone && !link_local && !network.addr().is_unspecified() && !network.addr().is_multicast()
}

fn seen() -> Vec<Seen> {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "the system does not say which networks this host is in");
            return Vec::new();
        }
    };
    let mut seen = Vec::new();
    for interface in interfaces {
        let (Some(ip), Some(mask)) =
            (interface.address.as_ref().and_then(ip), interface.netmask.as_ref().and_then(ip))
        else {
            continue;
        };
        let Ok(network) = IpNet::with_netmask(ip, mask) else { continue };
        let name = interface.interface_name;
        if interface.flags.contains(InterfaceFlags::IFF_UP) && !is_for_guests(&name) {
            seen.push(Seen {
                loopback: interface.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                megabits: megabits(Path::new(SYSFS), &name),
                interface: called(&name, cfg!(target_os = "macos")),
                network,
            });
        }
    }
    seen
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// A bridge without a wire in it: containers and virtual machines of this host alone are behind it, and every host that runs
/// the same software has the same network there.
fn is_for_guests(name: &str) -> bool {
    if cfg!(target_os = "macos") {
        return is_guests_bridge_of_macos(name);
    }
    let interface = Path::new(SYSFS).join(name);
    interface.join("bridge").is_dir() && !has_a_wire(&interface)
}

/// Of a bridge in sysfs: whether a port of it is a device, or is built on one.
fn has_a_wire(bridge: &Path) -> bool {
    let ports = fs::read_dir(bridge.join("brif")).into_iter().flatten().flatten();
    ports.map(|port| bridge.with_file_name(port.file_name())).any(|port| {
        let below = fs::read_dir(&port).into_iter().flatten().flatten();
        port.join("device").exists()
            || below
                .filter_map(|entry| entry.file_name().into_string().ok())
                .any(|name| name.starts_with("lower_"))
    })
}

/// macOS counts the bridges of virtual machines from 100 on; `bridge0` joins the Thunderbolt ports.
fn is_guests_bridge_of_macos(name: &str) -> bool {
    name.strip_prefix("bridge")
        .and_then(|number| number.parse::<u32>().ok())
        .is_some_and(|number| number >= 100)
}

fn called(name: &str, macos: bool) -> String {
    let thunderbolt =
        macos && name.strip_prefix("bridge").is_some_and(|number| number.parse::<u32>().is_ok());
    let called = if thunderbolt { format!("{name} (Thunderbolt)") } else { name.to_owned() };
    called.chars().take(LONGEST_NAME).collect()
}

/// What Linux says of the speed. Virtual and wireless interfaces, and those without a cable, say nothing usable.
fn megabits(sysfs: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(sysfs.join(name).join("speed")).ok()?;
    text.trim().parse().ok().filter(|megabits| (1..u64::from(u32::MAX)).contains(megabits))
}

/// `ADDRESS/PREFIX` or `ADDRESS/PREFIX=MEGABITS`, as a person writes it.
pub(crate) fn given(text: &str) -> Result<Link, String> {
    let (network, megabits) = match text.split_once('=') {
        Some((network, megabits)) => (network, Some(megabits)),
        None => (text, None),
    };
    let wrong =
        || format!("`{text}` is not ADDRESS/PREFIX or ADDRESS/PREFIX=MEGABITS, such as 10.0.7.12/24=40000");
    let network: IpNet = network.parse().map_err(|_| wrong())?;
    let megabits: Option<u64> = megabits.map(str::parse).transpose().map_err(|_| wrong())?;
    if megabits == Some(0) {
        return Err(wrong());
    }
    Ok(Link { address: network.to_string(), interface: String::new(), megabits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(interface: &str, network: &str, megabits: Option<u64>) -> Seen {
        let network: IpNet = network.parse().unwrap();
        Seen { interface: interface.to_owned(), network, loopback: network.addr().is_loopback(), megabits }
    }

    fn addresses(links: &[Link]) -> Vec<&str> {
        links.iter().map(|link| link.address.as_str()).collect()
    }

    fn machine() -> Vec<Seen> {
        vec![
            seen("lo", "127.0.0.1/8", None),
            seen("lo", "::1/128", None),
            seen("eth0", "10.0.0.5/24", Some(1000)),
            seen("eth0", "fe80::1/64", Some(1000)),
            seen("flannel.1", "10.42.0.0/32", None),
            seen("eth1", "10.0.7.5/24", Some(40_000)),
            seen("bridge0 (Thunderbolt)", "169.254.8.1/16", None),
        ]
    }

    #[test]
    fn networks_that_nobody_else_is_in_are_left_out() {
        let links = choose(machine(), "10.0.0.5", &[]);
        assert_eq!(addresses(&links), ["10.0.0.5/24", "10.0.7.5/24", "169.254.8.1/16"]);
        assert_eq!(addresses(&choose(machine(), "127.0.0.1", &[]))[0], "127.0.0.1/8");
        assert_eq!(addresses(&choose(machine(), "host-a.lan", &[]))[0], "10.0.7.5/24");
    }

    #[test]
    fn what_is_given_overrides_and_adds() {
        let links = ["10.0.0.5/24=10000", "192.168.3.4/24"].map(|text| given(text).unwrap());
        let links = choose(machine(), "10.0.0.5", &links);
        assert_eq!((links[0].interface.as_str(), links[0].megabits), ("eth0", Some(10_000)));
        assert!(addresses(&links).contains(&"192.168.3.4/24"), "{links:?}");
        assert_eq!(links.len(), 4);
        for bad in ["10.0.0.5", "10.0.0.5/33", "x/24", "10.0.0.5/24=fast", "10.0.0.5/24=0", ""] {
            assert!(given(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn there_are_never_more_than_a_status_may_list() {
        let many = (0..100).map(|n| seen("eth0", &format!("10.0.{n}.1/24"), Some(n))).collect();
        let links = choose(many, "10.0.3.1", &[]);
        assert_eq!((links.len(), links[0].address.as_str()), (MOST, "10.0.3.1/24"));
    }

    #[test]
    fn names_and_speeds_are_as_the_system_has_them() {
        assert_eq!(called("bridge0", true), "bridge0 (Thunderbolt)");
        assert_eq!((called("bridge0", false), called("bridges", true)), ("bridge0".into(), "bridges".into()));
        assert!(is_guests_bridge_of_macos("bridge100") && !is_guests_bridge_of_macos("bridge0"));
        let sysfs = tempfile::tempdir().unwrap();
        for (name, speed, expected) in [("eth0", "25000\n", Some(25_000)), ("virtio", "-1\n", None)] {
            fs::create_dir(sysfs.path().join(name)).unwrap();
            fs::write(sysfs.path().join(name).join("speed"), speed).unwrap();
            assert_eq!(megabits(sysfs.path(), name), expected);
        }
        assert_eq!(megabits(sysfs.path(), "wlan0"), None);
    }

    #[test]
    fn a_bridge_is_a_network_if_a_wire_is_in_it() {
        let sysfs = tempfile::tempdir().unwrap();
        let at = |path: &str| sysfs.path().join(path);
        for path in [
            "docker0/brif/veth1",
            "veth1",
            "br0/brif/eth0",
            "eth0/device",
            "br1/brif/bond0",
            "bond0/lower_eth1",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        assert!(!has_a_wire(&at("docker0")));
        assert!(has_a_wire(&at("br0")) && has_a_wire(&at("br1")));
    }

    #[test]
    fn this_machine_has_a_loopback_network_for_hosts_of_its_own() {
        let links = links("127.0.0.1", &[]);
        assert_eq!(links.first().map(|link| link.address.as_str()), Some("127.0.0.1/8"), "{links:?}");
    }
}
