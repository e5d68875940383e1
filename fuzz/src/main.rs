//! Runs the target that `IPIP_FUZZ_TARGET` names with libFuzzer, which takes the arguments.

#![no_main]

use ipip_fuzz::Target;
use libfuzzer_sys::fuzz_target;
use std::{
    env,
    panic::{PanicHookInfo, set_hook, take_hook},
    sync::LazyLock,
};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var("IPIP_FUZZ_TARGET").expect("IPIP_FUZZ_TARGET is the name of a target");
    ipip_fuzz::target(&name).unwrap_or_else(|| panic!("no target is called {name}"))
});

fuzz_target!(
    init: {
        // The hook of libFuzzer ends the program.
        let end = take_hook();
        set_hook(Box::new(move |panic| {
            if !is_caught(panic) {
                end(panic);
            }
        }));
    },
    |input: &[u8]| TARGET(input)
);

/// Whether the panic is one of the netlink libraries, which `ipip-netlink` catches.
fn is_caught(panic: &PanicHookInfo) -> bool {
    let location = panic.location();
    location.is_some_and(|it| it.file().contains("/netlink-packet-"))
}
