//! Which addresses models may come from. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far an address is away. A redirect may lead outwards, never inwards: who answers from the internet must not make
/// this machine ask its own network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// This machine.
    Loopback,
    /// A network of the site.
    Private,
    /// The internet.
    Public,
}

/// How far an address is away; `None` for those that answer with a machine's own secrets, or that are no single machine.
pub(crate) fn reach(address: IpAddr) -> Option<Reach> {
    match address {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(v4) => reach_v4(v4),
            None => reach_v6(v6),
        },
    }
}

fn reach_v4(v4: Ipv4Addr) -> Option<Reach> {
    // Metadata services outside the link-local range: Alibaba Cloud's, Oracle Cloud's, Azure's.
    const METADATA: [[u8; 4]; 3] = [[100, 100, 100, 200], [192, 0, 0, 192], [168, 63, 129, 16]];
    let octets = v4.octets();
    let forbidden = v4.is_link_local()
        || v4.is_multicast()
        || v4.is_broadcast()
        || octets[0] == 0
        || METADATA.contains(&octets);
    // Shared by a provider's customers, protocol assignments, and benchmarks: none of them is on the internet.
    let shared = octets[0] == 100 && octets[1] & 0xc0 == 64;
    let special = octets[..3] == [192, 0, 0] || (octets[0] == 198 && octets[1] & 0xfe == 18);
    match () {
        () if forbidden => None,
        () if v4.is_loopback() => Some(Reach::Loopback),
        () if v4.is_private() || shared || special => Some(Reach::Private),
        () => Some(Reach::Public),
    }
}

fn reach_v6(v6: Ipv6Addr) -> Option<Reach> {
    // The metadata services of AWS and Google Cloud.
    const METADATA: [[u16; 8]; 2] =
        [[0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]];
    let forbidden = v6.is_unicast_link_local()
        || v6.is_unspecified()
        || v6.is_multicast()
        || METADATA.contains(&v6.segments());
    match () {
        () if forbidden => None,
        () if v6.is_loopback() => Some(Reach::Loopback),
        () if v6.is_unique_local() => Some(Reach::Private),
        () => Some(Reach::Public),
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, translated (NAT64), or tunnelled (6to4).
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(of(s[6], s[7])),
        [0x2002, ..] => Some(of(s[1], s[2])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_far_as_they_are() {
        for (text, expected) in [
            ("127.0.0.1", Some(Reach::Loopback)),
            ("::1", Some(Reach::Loopback)),
            ("::ffff:127.0.0.1", Some(Reach::Loopback)),
            ("10.1.2.3", Some(Reach::Private)),
            ("172.31.0.1", Some(Reach::Private)),
            ("192.168.1.1", Some(Reach::Private)),
            ("100.64.0.1", Some(Reach::Private)),
            ("198.18.0.1", Some(Reach::Private)),
            ("fd12::1", Some(Reach::Private)),
            ("64:ff9b::10.0.0.1", Some(Reach::Private)),
            ("2002:7f00:1::", Some(Reach::Loopback)),
            ("203.0.113.7", Some(Reach::Public)),
            ("172.32.0.1", Some(Reach::Public)),
            ("2001:db8::1", Some(Reach::Public)),
            ("169.254.169.254", None),
            ("::ffff:169.254.169.254", None),
            ("64:ff9b::169.254.169.254", None),
            ("2002:a9fe:a9fe::", None),
            ("fd00:ec2::254", None),
            ("fd20:ce::254", None),
            ("100.100.100.200", None),
            ("192.0.0.192", None),
            ("168.63.129.16", None),
            ("fe80::1", None),
            ("ff02::1", None),
            ("224.0.0.1", None),
            ("255.255.255.255", None),
            ("0.0.0.0", None),
            ("0.1.2.3", None),
            ("::", None),
        ] {
            assert_eq!(reach(text.parse().unwrap()), expected, "{text}");
        }
        assert!(Reach::Loopback < Reach::Private && Reach::Private < Reach::Public);
    }
}
