//! The program `ipip`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ipip_cni::main()
}
