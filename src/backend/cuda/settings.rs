//! What a caller decides.

use std::path::PathBuf;

use super::driver::Device;

/// Where to look for what is not on the loader's path, and how much to pin.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directories with NVRTC and cuBLASLt, best first.
    pub library_dirs: Vec<PathBuf>,
    /// Where kernels compiled at run time are cached; none to compile them every time.
    pub cache_dir: Option<PathBuf>,
    /// Pinned memory for captures, in bytes.
    pub capture_bytes: usize,
    /// Wait after every operation, so that an error has one operation's name.
    pub blocking: bool,
    /// Whether a device of compute capability 9.0 may use the attention that is for it alone, which no GPU has run yet.
    pub hopper: bool,
    /// Whether kernels may be launched while the kernel before them still runs, on devices of compute capability 9.0 and newer;
    /// then they are compiled at run time. No GPU has run it yet.
    pub pdl: bool,
    /// Told in one line of what was found wrong and put right, such as a damaged file of the cache.
    pub on_warning: fn(&str),
}

impl Settings {
    /// Whether kernels of a device wait by themselves for the kernel before them.
    pub(super) fn pdl_on(&self, device: &Device) -> bool {
        self.pdl && device.arch() >= (9, 0)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            library_dirs: Vec::new(),
            cache_dir: None,
            capture_bytes: 1 << 30,
            blocking: false,
            hopper: false,
            pdl: false,
            on_warning: |_| {},
        }
    }
}
