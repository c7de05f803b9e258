//! What the CUDA backend needs to know of the machine: where its libraries may be, and where to cache compiled kernels and chosen algorithms.

use std::path::{Path, PathBuf};

use super::host;
use crate::backend::cuda::{GemmAlgorithms, Settings, devices};
use crate::formats::atomic::entries;
use crate::{Error, Result};

/// The settings by this process's environment: the directories in which toolkits and Python packages are usually found.
///
/// # Errors
/// A value of `LLAMAPROBE_HOPPER` or `LLAMAPROBE_PDL` that says neither yes nor no, or of `LLAMAPROBE_GEMM` that is no choice.
pub fn settings() -> Result<Settings> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut library_dirs: Vec<PathBuf> = variable("CUDA_HOME").into_iter().map(|home| home.join("lib64")).collect();
    library_dirs.push(PathBuf::from("/usr/local/cuda/lib64"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(bin) = std::env::split_paths(&path).find(|dir| dir.join("python3").exists()) {
        library_dirs.extend(python_libraries(&bin));
    }
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let word = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
    let asked = |name: &'static str| match word(name).as_deref() {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => Err(Error::unsupported(name, other, "0, 1")),
    };
    let gemm = word("LLAMAPROBE_GEMM").map_or(Ok(GemmAlgorithms::default()), |asked| {
        let names = GemmAlgorithms::NAMES.map(|(name, _)| name).join(", ");
        GemmAlgorithms::named(&asked).ok_or_else(|| Error::unsupported("LLAMAPROBE_GEMM", asked, names))
    })?;
    Ok(Settings {
        library_dirs,
        cache_dir: cache.map(|dir| dir.join("llamaprobe").join("kernels")),
        // As with the driver's own meaning of it: launches are waited for.
        blocking: variable("CUDA_LAUNCH_BLOCKING").is_some_and(|value| value.as_os_str() == "1"),
        hopper: asked("LLAMAPROBE_HOPPER")?,
        pdl: asked("LLAMAPROBE_PDL")?,
        gemm,
        on_warning: |line| say(line),
        ..Settings::default()
    })
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
pub fn best() -> std::result::Result<usize, String> {
    match devices() {
        Ok(0) => Err("the NVIDIA driver sees no device".to_owned()),
        Ok(_) => Ok(0),
        Err(Error::Device { message, .. }) => Err(message),
        Err(error) => Err(error.to_string()),
    }
}
