//! What remains after the worst hosts vanish: the arithmetic behind `hostFailures`.

/// Copies that remain when the `failures` hosts with the most copies vanish.
pub(crate) fn survivors(copies_by_host: impl IntoIterator<Item = u32>, failures: u32) -> u32 {
    let failures = failures as usize;
    // Those of the hosts that vanish, fewest first: as short a list as there are failures.
    let mut lost: Vec<u32> = Vec::with_capacity(failures + 1);
    let mut all = 0_u32;
    for copies in copies_by_host {
        all = all.saturating_add(copies);
        if copies > 0 && (lost.len() < failures || lost.first().is_some_and(|fewest| *fewest < copies)) {
            let place = lost.partition_point(|other| *other < copies);
            lost.insert(place, copies);
            if lost.len() > failures {
                lost.remove(0);
            }
        }
    }
    all.saturating_sub(lost.iter().fold(0, |sum, copies| sum.saturating_add(*copies)))
}

/// How many more hosts, with room for one copy each, it takes so that `replicas` remain.
pub(crate) fn missing_hosts(room_by_host: &[u32], failures: u32, replicas: u32) -> u32 {
    let room: Vec<u32> = room_by_host.iter().copied().filter(|room| *room > 0).collect();
    (0..failures + replicas)
        .find(|more| {
            let added = std::iter::repeat_n(1, *more as usize);
            survivors(room.iter().copied().chain(added), failures) >= replicas
        })
        .unwrap_or(failures + replicas)
}

/// The most failures after which `replicas` can remain, if any at all (0 included) can.
pub(crate) fn most_failures(room_by_host: &[u32], replicas: u32) -> Option<u32> {
    let mut fewest_first = room_by_host.to_vec();
    fewest_first.sort_unstable();
    let mut remaining = 0_u32;
    // So many of the emptiest hosts would do; all others may vanish.
    let needed = fewest_first.iter().position(|room| {
        remaining = remaining.saturating_add(*room);
        remaining >= replicas
    });
    match needed {
        _ if replicas == 0 => u32::try_from(room_by_host.len()).ok(),
        Some(last) => u32::try_from(room_by_host.len() - last - 1).ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_hosts_vanish() {
        assert_eq!(survivors([1, 1], 0), 2);
        assert_eq!(survivors([1, 1], 1), 1);
        assert_eq!(survivors([1, 3, 1], 1), 2);
        assert_eq!(survivors([2], 3), 0);
    }

    #[test]
    fn missing_hosts_are_counted() {
        assert_eq!(missing_hosts(&[], 1, 1), 2);
        assert_eq!(missing_hosts(&[4], 1, 1), 1);
        assert_eq!(missing_hosts(&[4], 1, 3), 3);
        assert_eq!(missing_hosts(&[1, 1, 1], 2, 1), 0);
        assert_eq!(most_failures(&[1, 1, 1], 1), Some(2));
        assert_eq!(most_failures(&[0], 1), None);
    }
}
