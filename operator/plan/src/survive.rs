//! What remains after the worst hosts vanish: the arithmetic behind `hostFailures`.

/// Copies that remain when the `failures` hosts with the most copies vanish.
pub(crate) fn survivors(copies_by_host: &[u32], failures: u32) -> u32 {
    let mut sorted = copies_by_host.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.iter().skip(failures as usize).sum()
}

/// How many more hosts, with room for one copy each, it takes so that `replicas` remain.
pub(crate) fn missing_hosts(room_by_host: &[u32], failures: u32, replicas: u32) -> u32 {
    let mut room = room_by_host.to_vec();
    let mut missing = 0;
    while survivors(&room, failures) < replicas && missing < failures + replicas {
        room.push(1);
        missing += 1;
    }
    missing
}

/// The most failures after which `replicas` can remain, if any at all (0 included) can.
pub(crate) fn most_failures(room_by_host: &[u32], replicas: u32) -> Option<u32> {
    (0..=room_by_host.len() as u32).rev().find(|failures| survivors(room_by_host, *failures) >= replicas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_hosts_vanish() {
        assert_eq!(survivors(&[1, 1], 0), 2);
        assert_eq!(survivors(&[1, 1], 1), 1);
        assert_eq!(survivors(&[1, 3, 1], 1), 2);
        assert_eq!(survivors(&[2], 3), 0);
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
