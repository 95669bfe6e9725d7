//! Datagrams that the kernel threw away because a socket's buffer was full.
//!
//! The kernel's table of UDP sockets has the very counter that `SO_RXQ_OVFL` would add to each
//! datagram, without a control message to each, and also while no further datagram comes.

use std::collections::HashSet;
use std::fs;

/// The tables of this network namespace, in the text form of `net/ipv4/udp.c`.
const TABLES: [&str; 2] = ["/proc/self/net/udp", "/proc/self/net/udp6"];
/// Columns of a table's line, counted from zero.
const INODE_COLUMN: usize = 9;
const DROPS_COLUMN: usize = 12;

/// Datagrams that sockets with these inodes have lost so far.
#[must_use]
pub fn lost(inodes: &HashSet<u64>) -> u64 {
    TABLES
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|table| sum(&table, inodes))
        .sum()
}

fn sum(table: &str, inodes: &HashSet<u64>) -> u64 {
    let drops = table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(INODE_COLUMN);
        let inode = columns.next()?.parse().ok()?;
        let drops = columns.nth(DROPS_COLUMN - INODE_COLUMN - 1)?.parse::<u64>().ok()?;
        inodes.contains(&inode).then_some(drops)
    });
    drops.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_drops_of_the_sockets_asked_for() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             9: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 77 2 0000000000000000 5\n\
            10: 0100007F:0036 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 78 2 0000000000000000 7\n\
            11: 0100007F:0037 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 79 2 0000000000000000 9\n";
        assert_eq!(sum(table, &HashSet::from([77, 79])), 14);
        assert_eq!(sum("", &HashSet::from([77])), 0);
    }
}
