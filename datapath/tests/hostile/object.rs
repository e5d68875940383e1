//! Loads the programs under test: those of the build, or those of the object that `IPIP_HOSTILE_OBJECT` names, which have a
//! fault.

use anyhow::{Context, Result};
use aya::{EbpfLoader, programs::SchedClassifier};
use ipip_abi::{Program, maps};
use ipip_datapath::{AttachMode, load};
use ipip_testkit::scratch::ScratchPins;
use std::{env, fs, path::Path};

/// A datapath with the programs under test.
pub fn loaded() -> Result<ScratchPins> {
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto)?;
    if let Some(object) = env::var_os("IPIP_HOSTILE_OBJECT") {
        replace_programs(&pins, Path::new(&object))?;
    }
    Ok(pins)
}

/// Pins the programs of another object, with the same maps, in place of those that are pinned.
fn replace_programs(pins: &ScratchPins, object: &Path) -> Result<()> {
    let mut loader = EbpfLoader::new();
    for spec in maps::ALL {
        loader.map_pin_path(spec.name, pins.map(spec));
    }
    let mut object = loader
        .default_map_pin_directory(pins.maps())
        .load_file(object)?;
    for program in Program::ALL {
        let loaded: &mut SchedClassifier = object
            .program_mut(program.name())
            .context("the object lacks the program")?
            .try_into()?;
        loaded.load()?;
        let path = pins.program(program);
        fs::remove_file(&path)?;
        loaded.pin(path)?;
    }
    Ok(())
}
