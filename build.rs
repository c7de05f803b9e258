//! Embeds the text of the CUDA kernels, and on request what `nvcc` makes of it.
//!
//! `LLAMAPROBE_NVCC` unset: text only; the kernels are compiled at run time. `LLAMAPROBE_NVCC=/path/to/nvcc`, or `1` for
//! the one in `$CUDA_HOME/bin`, `/usr/local/cuda/bin` or on `PATH`: also fat binaries for sm_80 and sm_90a with PTX 80.
//! A value that does not lead to a compiler stops the build: what a binary holds never depends on what is installed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[path = "src/backend/cuda/variant.rs"]
mod variant;
use variant::{Heads, Variant};

/// Types of `real`, one variant of each kernel for each.
const REALS: [&str; 3] = ["float", "bf16", "half"];
/// Bytes of each of them.
const ELEMENTS: [usize; 3] = [4, 2, 2];
/// Head widths of the attention's variants in fat binaries; others are compiled at run time.
const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];
/// Those whose scores are capped (Gemma 2).
const CAPPED_HEAD_DIMS: [usize; 2] = [128, 256];
/// What stands before the text of every kernel file, in this order.
const HEADERS: [&str; 2] = ["prelude.cuh", "tensor.cuh"];
/// The files whose kernels vary with the heads: the attention's, and its forward for compute capability 9.0.
const BY_HEAD: &str = "attention";
const HOPPER: &str = "attention_hopper";

fn main() {
    println!("cargo:rerun-if-env-changed=LLAMAPROBE_NVCC");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=kernels");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = root.join("kernels");
    let prelude = HEADERS.map(|name| read(&kernels.join(name))).concat();
    let nvcc = env::var("LLAMAPROBE_NVCC").ok().filter(|value| !value.is_empty()).map(|value| find_nvcc(&value));
    let mut names: Vec<String> = fs::read_dir(&kernels)
        .unwrap_or_else(|e| panic!("{}: {e}", kernels.display()))
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.strip_suffix(".cu").map(str::to_owned))
        .collect();
    names.sort();
    let mut sources = String::new();
    let mut binaries = String::new();
    for name in &names {
        let own: String = own_headers(&kernels, name)
            .iter()
            .map(|own| format!("#line 1 \"{own}\"\n{}\n", read(&kernels.join(own))))
            .collect();
        let text = format!("{prelude}\n{own}\n#line 1 \"{name}.cu\"\n{}", read(&kernels.join(format!("{name}.cu"))));
        let file = out.join(format!("{name}.cu"));
        fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        writeln!(sources, "    ({name:?}, include_str!({file:?})),").expect("a string takes everything");
        let Some(nvcc) = &nvcc else { continue };
        for (real, element) in REALS.into_iter().zip(ELEMENTS) {
            for build in builds(name, element) {
                let Heads { width, capped } = build;
                let fatbin = out.join(format!("{name}.{real}.{width}{}.fatbin", if capped { ".capped" } else { "" }));
                compile(nvcc, &file, &fatbin, real, (width > 0).then(|| Variant::new(build, element)));
                writeln!(binaries, "    ({name:?}, {real:?}, {width}, {capped}, include_bytes!({fatbin:?})),")
                    .expect("a string takes everything");
            }
        }
    }
    let table = format!(
        "/// Name and text of each kernel file, its headers in front.\n\
         pub static SOURCES: &[(&str, &str)] = &[\n{sources}];\n\
         /// Kernel file, type of `real`, head width (0 where there is none), whether scores are capped, and fat binary.\n\
         pub static BINARIES: &[(&str, &str, usize, bool, &[u8])] = &[\n{binaries}];\n"
    );
    fs::write(out.join("kernels.rs"), table).unwrap_or_else(|e| panic!("kernels.rs: {e}"));
}

/// The headers of a file's own, which stand before it: of its whole name, and of a beginning of it.
fn own_headers(kernels: &Path, name: &str) -> Vec<String> {
    let ends = name.match_indices('_').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("{}.cuh", &name[..end])).filter(|header| kernels.join(header).exists()).collect()
}

/// The variants of a file in fat binaries for elements of so many bytes.
fn builds(file: &str, element: usize) -> Vec<Heads> {
    let of = |widths: &[usize], capped| widths.iter().map(|&width| Heads { width, capped }).collect::<Vec<_>>();
    let all = [of(&HEAD_DIMS, false), of(&CAPPED_HEAD_DIMS, true)].concat();
    match file {
        BY_HEAD => all,
        HOPPER => all.into_iter().filter(|&heads| Variant::has_hopper(heads, element)).collect(),
        _ => vec![Heads::default()],
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The compiler that `LLAMAPROBE_NVCC` asks for.
fn find_nvcc(value: &str) -> PathBuf {
    let places: Vec<PathBuf> = if value == "1" {
        let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let dirs = home.into_iter().chain([PathBuf::from("/usr/local/cuda/bin")]).chain(env::split_paths(&path));
        dirs.map(|dir| dir.join("nvcc")).collect()
    } else {
        vec![PathBuf::from(value)]
    };
    let works = |nvcc: &PathBuf| Command::new(nvcc).arg("--version").output().is_ok_and(|out| out.status.success());
    places.into_iter().find(works).unwrap_or_else(|| {
        panic!(
            "LLAMAPROBE_NVCC={value}: no working nvcc there; expected the path of nvcc, or 1 to look in \
             $CUDA_HOME/bin, /usr/local/cuda/bin and PATH, or unset to compile the kernels at run time"
        )
    })
}

fn compile(nvcc: &Path, source: &Path, fatbin: &Path, real: &str, variant: Option<Variant>) {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3"]);
    command.args(["-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=sm_90a"]);
    command.arg(format!("-DREAL={real}"));
    command.args(variant.iter().flat_map(Variant::options));
    let out = command.arg(source).arg("-o").arg(fatbin).output();
    let out = out.unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    assert!(out.status.success(), "{} {}:\n{}", nvcc.display(), source.display(), String::from_utf8_lossy(&out.stderr));
}
