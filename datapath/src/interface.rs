//! Names of interfaces.

use nix::net::if_::if_indextoname;

/// The name of an interface of this network namespace; none if there is no such interface, or its name is not UTF-8.
pub fn interface_name(index: u32) -> Option<String> {
    let name = if_indextoname(index).ok()?.into_string().ok()?;
    // nix 0.31 takes the null pointer of a missing interface for success, with an empty name.
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_has_no_name() {
        assert_eq!(interface_name(1).as_deref(), Some("lo"));
        assert_eq!(interface_name(u32::MAX), None);
    }
}
