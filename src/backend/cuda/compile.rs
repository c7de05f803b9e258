//! From kernel texts to functions: the binary embedded at build time, else the cache on disk, else NVRTC.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaModule, result, sys};
use cudarc::nvrtc::{self, Ptx};

use super::driver::{Device, error, message};
use super::dtype::ComputeDtype;
use super::launch::{Kernel, Param, parameters};
use super::library;
use super::sealed::{Magic, seal, unseal};
use super::settings::Settings;
use super::variant::{Heads, Variant};
use crate::Result;
use crate::formats::atomic;
use crate::hash::{digest, hex};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Dynamic shared memory that a kernel may use without asking.
const SHARED_FREE: u32 = 48 << 10;

/// A kernel that can be launched.
#[derive(Clone)]
pub struct Function {
    /// The driver's, which keeps its module loaded.
    pub handle: CudaFunction,
    /// Its parameters in order, read off the kernel's text.
    pub params: Arc<[Param]>,
}

struct Module {
    handle: Arc<CudaModule>,
    params: HashMap<String, Vec<Param>>,
}

/// The kernels of one device and compute dtype, loaded when first asked for.
pub struct Kernels {
    device: Arc<Device>,
    settings: Settings,
    dtype: ComputeDtype,
    /// Whether they wait by themselves for the kernel before; those embedded do not.
    pdl: bool,
    /// By file and heads.
    modules: HashMap<(&'static str, Heads), Module>,
    /// By name and heads.
    functions: HashMap<(&'static str, Heads), Function>,
    /// Dynamic shared memory that each function has been allowed, in bytes.
    shared: HashMap<(&'static str, Heads), u32>,
}

impl Kernels {
    /// Kernels for a device and dtype; each is loaded when it is first launched.
    pub fn new(device: Arc<Device>, dtype: ComputeDtype, settings: &Settings) -> Self {
        let (settings, pdl) = (settings.clone(), settings.pdl_on(&device));
        let (modules, functions, shared) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { device, settings, dtype, pdl, modules, functions, shared }
    }

    /// A kernel with room for `shared` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// If it cannot be compiled or loaded.
    pub fn get(&mut self, kernel: Kernel, shared: u32) -> Result<Function> {
        let key = (kernel.name, kernel.heads);
        if !self.functions.contains_key(&key) {
            let function = self.load(kernel)?;
            self.functions.insert(key, function);
        }
        let function = self.functions[&key].clone();
        let room = self.shared.entry(key).or_insert(SHARED_FREE);
        if shared > *room {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let set = self.device.bind().and_then(|()| function.handle.set_attribute(attribute, shared as i32));
            self.device.check(kernel.name, set)?;
            *room = shared;
        }
        Ok(function)
    }

    fn load(&mut self, Kernel { file, name, heads }: Kernel) -> Result<Function> {
        if !self.modules.contains_key(&(file, heads)) {
            let module = self.module(file, heads)?;
            self.modules.insert((file, heads), module);
        }
        let module = &self.modules[&(file, heads)];
        let params = module.params.get(name);
        let params = params.unwrap_or_else(|| panic!("{name}: no kernel of this name in {file}.cu"));
        let handle = self.device.bind().and_then(|()| module.handle.load_function(name));
        Ok(Function { handle: self.device.check(name, handle)?, params: params.as_slice().into() })
    }

    fn module(&self, file: &'static str, heads: Heads) -> Result<Module> {
        let source = SOURCES.iter().find(|(name, _)| *name == file).map(|(_, text)| *text);
        let source = source.unwrap_or_else(|| panic!("no kernel file {file}.cu"));
        let fail = |e| error(self.device.name(), "load kernels", &format!("{file}.cu: {}", message(e)));
        let module = |handle| Module { handle, params: parameters(source) };
        let wanted = (file, self.dtype.kernel_type(), heads.width, heads.capped);
        let found = BINARIES.iter().find(|(name, real, width, capped, _)| (*name, *real, *width, *capped) == wanted);
        if let Some((.., binary)) = found.filter(|_| !self.pdl) {
            match self.load_image(binary.to_vec()) {
                Ok(handle) => return Ok(module(handle)),
                // Made for other devices, or in a language newer than the driver's: the text serves any.
                Err(result::DriverError(
                    sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                    | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                    | sys::CUresult::CUDA_ERROR_INVALID_PTX,
                )) => {}
                Err(e) => return Err(fail(e)),
            }
        }
        let build = self.build(file, source, heads)?;
        // What is whole and still does not load, such as after an update of the driver, is compiled again too.
        let cached = build.path.as_deref().and_then(|path| self.cached(path));
        if let Some(handle) = cached.and_then(|cubin| self.load_image(cubin).ok()) {
            return Ok(module(handle));
        }
        let cubin = compile(source, &format!("{file}.cu"), &build.options)
            .map_err(|log| error(self.device.name(), "compile kernels", &format!("{file}.cu: {log}")))?;
        // Where nothing can be kept, they are compiled every time.
        let _ = build.path.map(|path| atomic::write(path, &seal(&MAGIC, &cubin)));
        self.load_image(cubin).map(module).map_err(fail)
    }

    /// The cubin that is cached in a file, if it is whole.
    fn cached(&self, path: &Path) -> Option<Vec<u8>> {
        let file = atomic::read_if_there(path).ok().flatten()?;
        let cubin = unseal(&MAGIC, &file);
        if cubin.is_none() {
            (self.settings.on_warning)(&format!("kernel cache: {}: damaged, compiled again", path.display()));
        }
        cubin.map(<[u8]>::to_vec)
    }

    /// Loads a whole fat binary or cubin. The driver reads as far as the image's own headers say, so nothing may come here
    /// but what was embedded, was just compiled, or has been found whole by its digest.
    fn load_image(&self, image: Vec<u8>) -> Result<Arc<CudaModule>, result::DriverError> {
        self.device.context().load_module(Ptx::from_binary(image))
    }

    /// How the binary for this very device is built, and where it is cached.
    fn build(&self, file: &str, source: &str, heads: Heads) -> Result<Build> {
        let device = self.device.name();
        library::find("nvrtc", &self.settings.library_dirs).map_err(|found| {
            let wanted = "the kernels are compiled at run time and need NVRTC: pip install nvidia-cuda-nvrtc";
            error(device, "compile kernels", &format!("{found}; {wanted}"))
        })?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both addresses are those of integers.
        let version = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result();
        version.map_err(|e| error(device, "compile kernels", &e.to_string()))?;
        let mut options = vec![
            architecture(self.device.arch()),
            "--std=c++17".to_owned(),
            format!("-DREAL={}", self.dtype.kernel_type()),
        ];
        options.extend(self.pdl.then(|| "-DPDL=1".to_owned()));
        if heads.width > 0 {
            options.extend(Variant::new(heads, self.dtype.size()).options());
        }
        // Options hold no line breaks, and the text of the kernels comes last: no two builds give the same bytes.
        let compiler = format!("{major}.{minor}\n{}\n", options.join("\n"));
        let key = hex(&digest([compiler.as_bytes(), source.as_bytes()])[..16]);
        let path = self.settings.cache_dir.as_ref().map(|dir| {
            let real = self.dtype.kernel_type();
            dir.join(format!("{file}-{real}-{}-{key}.kernels", heads.width))
        });
        Ok(Build { options, path })
    }
}

/// How a compiler is told of a device's compute capability. What only those of 9.0 have, they have under a name of its own.
fn architecture((major, minor): (i32, i32)) -> String {
    format!("--gpu-architecture=sm_{major}{minor}{}", if (major, minor) == (9, 0) { "a" } else { "" })
}

/// How a binary is built, and where it is cached.
struct Build {
    options: Vec<String>,
    path: Option<PathBuf>,
}

/// First bytes of a cached cubin's file.
const MAGIC: Magic = *b"LPCUBIN1";

/// What NVRTC makes of a source for one kind of device; the error is its log.
fn compile(source: &str, name: &str, options: &[String]) -> Result<Vec<u8>, String> {
    let text = |text: &str| CString::new(text).map_err(|e| e.to_string());
    let (source, name) = (text(source)?, text(name)?);
    let program = nvrtc::result::create_program(&source, Some(&name)).map_err(|e| e.to_string())?;
    // SAFETY: the program exists until the last line, and source and name live longer.
    let cubin = unsafe {
        nvrtc::result::compile_program(program, options).map_err(|e| {
            let log = nvrtc::result::get_program_log(program).unwrap_or_default();
            format!("{e}: {}", log_text(&log))
        })
    }
    .and_then(|()| {
        let mut len = 0;
        // SAFETY: as above; the buffer has the length that the program asks for.
        unsafe {
            nvrtc::sys::nvrtcGetCUBINSize(program, &raw mut len).result().map_err(|e| e.to_string())?;
            let mut cubin = vec![0u8; len];
            nvrtc::sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result().map_err(|e| e.to_string())?;
            Ok(cubin)
        }
    });
    // SAFETY: the program was made above and is not used again.
    let _ = unsafe { nvrtc::result::destroy_program(program) };
    cubin
}

fn log_text(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|&c| c as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |text| text.to_string_lossy().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_those_of_nvcc() {
        assert_eq!(
            [(8, 0), (9, 0), (12, 0)].map(architecture).map(|option| option[22..].to_owned()),
            ["80", "90a", "120"]
        );
    }
}
