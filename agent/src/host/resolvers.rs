//! The resolvers of this host, as files in the form of resolv.conf(5) name them.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, path::PathBuf};

/// The IPv4 addresses that `files` name. A file that does not exist names none.
pub fn read(files: &[PathBuf]) -> BTreeSet<Ipv4Addr> {
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| parse(&text)).collect()
}

fn parse(text: &str) -> Vec<Ipv4Addr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let server = words.next().filter(|word| *word == "nameserver");
        server.and_then(|_| words.next()?.parse().ok())
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ipv4_nameserver_is_found_and_nothing_else() {
        let text = "# nameserver 10.0.0.9\nsearch example.org\nnameserver 10.0.0.2\n  nameserver\t10.0.0.3 # old\nnameserver fe80::1%eth0\nnameserver\noptions nameserver\n";
        assert_eq!(
            parse(text),
            [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)]
        );
    }

    #[test]
    fn a_missing_file_names_no_resolver() {
        assert_eq!(read(&["/nonexistent/resolv.conf".into()]), BTreeSet::new());
    }
}
