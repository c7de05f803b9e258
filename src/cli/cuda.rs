//! What the CUDA backend needs to know of the machine: where its libraries may be, and where to cache compiled kernels.

use std::path::{Path, PathBuf};

use super::host;
use crate::backend::cuda::{Settings, devices};
use crate::formats::atomic::entries;

/// The settings by this process's environment: the directories in which toolkits and Python packages are usually found.
pub fn settings() -> Settings {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut library_dirs: Vec<PathBuf> = variable("CUDA_HOME").into_iter().map(|home| home.join("lib64")).collect();
    library_dirs.push(PathBuf::from("/usr/local/cuda/lib64"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(bin) = std::env::split_paths(&path).find(|dir| dir.join("python3").exists()) {
        library_dirs.extend(python_libraries(&bin));
    }
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    Settings {
        library_dirs,
        cache_dir: cache.map(|dir| dir.join("llamaprobe").join("kernels")),
        // As with the driver's own meaning of it: launches are waited for.
        blocking: variable("CUDA_LAUNCH_BLOCKING").is_some_and(|value| value.as_os_str() == "1"),
        hopper: variable("LLAMAPROBE_HOPPER").is_some_and(|value| value.as_os_str() == "1"),
        on_warning: |line| say(line),
        ..Settings::default()
    }
}

/// Writes to stderr which device was chosen, and what it had to put right.
pub fn say(text: impl std::fmt::Display) {
    match host::current() {
        Some(host) => host.note(text.to_string()),
        None => eprintln!("{text}"),
    }
}

/// The library directories of the NVIDIA packages of the Python whose program is in `bin`.
fn python_libraries(bin: &Path) -> Vec<PathBuf> {
    let packages = entries(bin.join("../lib")).into_iter().flat_map(|python| {
        let named = python.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
        let packages = ["site-packages", "dist-packages"].map(|dir| python.join(dir).join("nvidia"));
        packages.into_iter().filter(move |_| named)
    });
    packages
        .flat_map(|nvidia| ["cu13/lib", "cuda_nvrtc/lib", "cublas/lib"].map(|lib| nvidia.join(lib)))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// The device that `auto` stands for: the first GPU, or none, and why.
pub fn best() -> Result<usize, String> {
    match devices() {
        Ok(0) => Err("the NVIDIA driver sees no device".to_owned()),
        Ok(_) => Ok(0),
        Err(crate::Error::Device { message, .. }) => Err(message),
        Err(error) => Err(error.to_string()),
    }
}
