//! Finding NVIDIA's libraries where they are not on the loader's path, as in a Python environment.

use std::path::PathBuf;

use libloading::Library;

use crate::formats::atomic;

/// Sees to it that cudarc finds a library (`nvrtc` or `cublasLt`): on the loader's own path, or in one of `dirs`.
///
/// # Errors
/// A sentence that says that it was not found, and where it was looked for.
pub fn find(name: &'static str, dirs: &[PathBuf]) -> Result<(), String> {
    // SAFETY: both calls only try to open the library by its usual names; NVIDIA's initialisers have no conditions.
    let present = || unsafe {
        match name {
            "nvrtc" => cudarc::nvrtc::sys::is_culib_present(),
            _ => cudarc::cublaslt::sys::is_culib_present(),
        }
    };
    if present() {
        return Ok(());
    }
    let main = |file: &str| ["13", "12"].map(|v| format!("lib{name}.so.{v}")).contains(&file.to_owned());
    let part = |file: &str| file.starts_with(&format!("lib{name}-builtins.so."));
    for dir in dirs {
        let files = atomic::entries(dir);
        let named = |wanted: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
            let name = |path: &&PathBuf| path.file_name().and_then(|f| f.to_str()).is_some_and(wanted);
            files.iter().filter(name).cloned().collect()
        };
        let found = named(&main);
        if found.is_empty() {
            continue;
        }
        // NVRTC opens its parts by name only, so they must be there before it is. A loaded library is found again by
        // its name as long as it is not closed.
        for path in named(&part).into_iter().chain(found) {
            // SAFETY: as above.
            if let Ok(library) = unsafe { Library::new(&path) } {
                std::mem::forget(library);
            }
        }
        if present() {
            return Ok(());
        }
    }
    let looked: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    Err(match looked.as_slice() {
        [] => format!("lib{name}.so was not found on the loader's path"),
        _ => format!("lib{name}.so was not found on the loader's path nor in {}", looked.join(", ")),
    })
}
