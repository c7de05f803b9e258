//! From kernel texts to functions: the binary embedded at build time, else the cache on disk, else NVRTC.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use cudarc::driver::{result, sys};
use cudarc::nvrtc;

use super::driver::{Device, error, message};
use super::launch::{Param, parameters};
use super::library;
use super::variant::Variant;
use super::{Compute, Settings};
use crate::Result;
use crate::formats::atomic;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Dynamic shared memory that a kernel may use without asking.
const SHARED_FREE: u32 = 48 << 10;

/// A kernel that can be launched.
#[derive(Clone)]
pub struct Function {
    /// The driver's handle.
    pub handle: sys::CUfunction,
    /// What it takes.
    pub params: Arc<[Param]>,
}

struct Module {
    handle: sys::CUmodule,
    params: HashMap<String, Vec<Param>>,
}

/// The kernels of one device and compute dtype, loaded when first asked for.
pub struct Kernels {
    device: Arc<Device>,
    settings: Settings,
    real: &'static str,
    element: usize,
    modules: HashMap<(&'static str, usize), Module>,
    functions: HashMap<(&'static str, usize), Function>,
    shared: HashMap<(&'static str, usize), u32>,
}

// SAFETY: modules and functions are objects of the driver, which may be used from any thread.
unsafe impl Send for Kernels {}

impl Kernels {
    /// None loaded yet.
    pub fn new<R: Compute>(device: Arc<Device>, settings: &Settings) -> Self {
        Self {
            device,
            settings: settings.clone(),
            real: R::KERNEL,
            element: size_of::<R>(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            shared: HashMap::new(),
        }
    }

    /// Kernel `name` of `file`, for heads of width `head` (0 where the file does not vary), with room for `shared`
    /// bytes of dynamic shared memory.
    ///
    /// # Errors
    /// If it cannot be compiled or loaded.
    pub fn get(&mut self, file: &'static str, name: &'static str, head: usize, shared: u32) -> Result<Function> {
        if !self.functions.contains_key(&(name, head)) {
            let function = self.load(file, name, head)?;
            self.functions.insert((name, head), function);
        }
        let function = self.functions[&(name, head)].clone();
        let room = self.shared.entry((name, head)).or_insert(SHARED_FREE);
        if shared > *room {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a module that is unloaded only with `self`.
            let set = unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) };
            self.device.check(name, set)?;
            *room = shared;
        }
        Ok(function)
    }

    fn load(&mut self, file: &'static str, name: &'static str, head: usize) -> Result<Function> {
        self.device.bind();
        if !self.modules.contains_key(&(file, head)) {
            let module = self.module(file, head)?;
            self.modules.insert((file, head), module);
        }
        let module = &self.modules[&(file, head)];
        let params = module.params.get(name);
        let params = params.unwrap_or_else(|| panic!("{name}: no kernel of this name in {file}.cu"));
        let symbol = CString::new(name).expect("a kernel's name has no zero byte");
        // SAFETY: the module is loaded, and unloaded only with `self`.
        let handle = unsafe { result::module::get_function(module.handle, symbol) };
        Ok(Function { handle: self.device.check(name, handle)?, params: params.as_slice().into() })
    }

    fn module(&self, file: &'static str, head: usize) -> Result<Module> {
        let source = SOURCES.iter().find(|(name, _)| *name == file).map(|(_, text)| *text);
        let source = source.unwrap_or_else(|| panic!("no kernel file {file}.cu"));
        let embedded = BINARIES.iter().find(|(name, real, width, _)| (*name, *real, *width) == (file, self.real, head));
        if let Some((.., binary)) = embedded {
            match self.load_image(binary) {
                Ok(handle) => return Ok(Module { handle, params: parameters(source) }),
                // Made for other devices, or in a language newer than the driver's: the text serves any.
                Err(result::DriverError(
                    sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                    | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                    | sys::CUresult::CUDA_ERROR_INVALID_PTX,
                )) => {}
                Err(e) => return Err(error(self.device.name(), "load kernels", &format!("{file}.cu: {}", message(e)))),
            }
        }
        let wanted = self.wanted(file, source, head)?;
        let kept = wanted.path.as_ref().and_then(|path| atomic::read_if_there(path).ok().flatten());
        // What was kept may have been damaged since.
        let kept = kept.and_then(|cubin| self.load_image(&cubin).ok());
        let handle = match kept {
            Some(handle) => handle,
            None => {
                let cubin = compile(source, &format!("{file}.cu"), &wanted.options)
                    .map_err(|log| error(self.device.name(), "compile kernels", &format!("{file}.cu: {log}")))?;
                // Where nothing can be kept, they are compiled every time.
                let _ = wanted.path.map(|path| atomic::write(path, &cubin));
                let handle = self.load_image(&cubin);
                handle.map_err(|e| error(self.device.name(), "load kernels", &format!("{file}.cu: {}", message(e))))?
            }
        };
        Ok(Module { handle, params: parameters(source) })
    }

    fn load_image(&self, image: &[u8]) -> Result<sys::CUmodule, result::DriverError> {
        // SAFETY: an image is a whole fat binary or cubin, which says where it ends.
        unsafe { result::module::load_data(image.as_ptr().cast()) }
    }

    /// How the binary for this very device is made, and where it is kept.
    fn wanted(&self, file: &str, source: &str, head: usize) -> Result<GradientRequest> {
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
            format!("--gpu-architecture=sm_{}{}", self.device.arch.0, self.device.arch.1),
            "--std=c++17".to_owned(),
            format!("-DREAL={}", self.real),
        ];
        if head > 0 {
            options.extend(Variant::new(head, self.element).options());
        }
        let key = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            (salt, source, &options, major, minor).hash(&mut hasher);
            hasher.finish()
        };
        let path = self.settings.cache_dir.as_ref().map(|dir| {
            let name = format!("{file}-{}-{head}-{:016x}{:016x}.cubin", self.real, key(0), key(1));
            dir.join(name)
        });
        Ok(GradientRequest { options, path })
    }
}

/// How a binary is made, and where it is kept.
struct GradientRequest {
    options: Vec<String>,
    path: Option<PathBuf>,
}

impl Drop for Kernels {
    fn drop(&mut self) {
        self.device.bind();
        for module in self.modules.values() {
            // SAFETY: the module was loaded by this value, and its functions go with it.
            let _ = unsafe { result::module::unload(module.handle) };
        }
    }
}

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
