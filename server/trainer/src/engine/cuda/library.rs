//! NVIDIA's libraries, loaded while the program runs, so that the same executable starts on a machine without them.
//!
//! Only functions whose form CUDA 12 and 13 share are declared, by their versioned names where they have one. All of
//! them answer with a status, 0 for success.

use std::path::PathBuf;
use std::process::Command;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::super::session::{EngineError, Result};

/// Declares a library's functions: a struct of their addresses, and a method each that turns the status into an error.
macro_rules! library {
    ($(#[$doc:meta])* $library:ident, $describe:path {
        $(fn $function:ident($($argument:ident: $type:ty),* $(,)?);)*
    }) => {
        $(#[$doc])*
        #[allow(non_snake_case, reason = "the library's own names")]
        pub(super) struct $library {
            $($function: unsafe extern "C" fn($($type),*) -> i32,)*
            /// Unloaded after the last of its functions is gone.
            _library: libloading::os::unix::Library,
        }

        #[allow(non_snake_case, clippy::too_many_arguments, reason = "the library's own functions")]
        impl $library {
            /// # Errors
            /// When the library lacks a function.
            pub(super) fn bind(library: libloading::os::unix::Library) -> $crate::engine::session::Result<Self> {
                $(
                    // SAFETY: the type is the one that the library's header declares.
                    let $function = unsafe {
                        $crate::engine::cuda::library::function(&library, stringify!($function))?
                    };
                )*
                Ok(Self { $($function,)* _library: library })
            }

            $(
                pub(super) unsafe fn $function(&self, $($argument: $type),*) -> $crate::engine::session::Result<()> {
                    // SAFETY: the caller keeps the function's rules.
                    match unsafe { (self.$function)($($argument),*) } {
                        0 => Ok(()),
                        status => Err($crate::engine::cuda::library::failed(
                            stringify!($function),
                            $describe(status),
                        )),
                    }
                }
            )*
        }
    };
}
pub(super) use library;

pub(super) fn failed(what: &str, why: impl Into<String>) -> EngineError {
    EngineError::Device {
        what: what.to_owned(),
        why: why.into(),
    }
}

/// # Safety
/// `F` has to be the type of the function of that name.
pub(super) unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F> {
    // SAFETY: as the caller says.
    match unsafe { library.get::<F>(name) } {
        Ok(symbol) => Ok(*symbol),
        Err(source) => Err(failed(
            &format!("the library has no {name}"),
            format!("{source}; it may be too old"),
        )),
    }
}

/// A library that the engine needs, and what brings it.
pub struct Wanted {
    pub title: &'static str,
    /// Most wanted first.
    pub names: &'static [&'static str],
    pub hint: &'static str,
}

pub const DRIVER: Wanted = Wanted {
    title: "NVIDIA's driver",
    names: &["libcuda.so.1"],
    hint: "install NVIDIA's driver, 525 or newer",
};
pub const BLAS: Wanted = Wanted {
    title: "cuBLASLt",
    names: &["libcublasLt.so.13", "libcublasLt.so.12"],
    hint: "install the CUDA toolkit, or `pip install nvidia-cublas` (for drivers older than 580: nvidia-cublas-cu12)",
};
const BLAS_12: Wanted = Wanted {
    title: "cuBLASLt",
    names: &["libcublasLt.so.12"],
    hint: "this driver runs CUDA 12: `pip install nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12`",
};
pub const DNN: Wanted = Wanted {
    title: "cuDNN",
    names: &["libcudnn.so.9"],
    hint: "install cuDNN 9, or `pip install nvidia-cudnn-cu13` (for drivers older than 580: nvidia-cudnn-cu12)",
};

/// cuBLASLt of a CUDA that the driver runs: `driver` is the newest, such as 13000. One that is newer would load and then fail.
pub fn blas_for(driver: i32) -> &'static Wanted {
    if driver < 13_000 { &BLAS_12 } else { &BLAS }
}

/// What a driver is good for, and what to install beside it.
pub fn advice(driver: i32) -> &'static str {
    match driver {
        ..12_000 => "too old: install NVIDIA's driver, 525 or newer (580 or newer for CUDA 13)",
        12_000..13_000 => {
            "runs CUDA 12: it needs `pip install nvidia-cublas-cu12 nvidia-cudnn-cu12`, or CUDA 12's toolkit and cuDNN 9; \
             driver 580 or newer runs CUDA 13"
        }
        _ => "runs CUDA 13: it needs `pip install nvidia-cublas nvidia-cudnn-cu13`, or CUDA 13's toolkit and cuDNN 9",
    }
}

/// A library with the file it came from.
pub struct Found {
    pub library: Library,
    pub file: String,
}

/// Looks where the dynamic linker looks, then in the toolkit, in pip's packages, and in Likeness's cache folder.
///
/// # Errors
/// When it is nowhere; the error says what to install.
pub fn find(wanted: &Wanted) -> Result<Found> {
    // Versions go with the order of names, and folders within.
    let mut last = None;
    for name in wanted.names {
        let folders = folders();
        let files = std::iter::once(PathBuf::from(name)).chain(folders.iter().map(|folder| folder.join(name)));
        for file in
            files.filter(|file| file.parent().is_some_and(|parent| parent.as_os_str().is_empty()) || file.exists())
        {
            // SAFETY: NVIDIA's libraries set themselves up without touching what is ours. Global, because cuDNN's parts
            // look for cuBLASLt among the libraries that are there already.
            match unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => {
                    return Ok(Found {
                        library,
                        file: file.display().to_string(),
                    });
                }
                Err(source) if file.exists() => last = Some(format!("{}: {source}", file.display())),
                Err(_) => {}
            }
        }
    }
    let why = last.unwrap_or_else(|| format!("{} is nowhere on this machine", wanted.names.join(" or ")));
    Err(failed(
        &format!("{} could not be loaded", wanted.title),
        format!("{why}; {}", wanted.hint),
    ))
}

/// Folders that may hold CUDA's libraries, beyond those that the dynamic linker knows.
pub fn folders() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        roots.extend(std::env::var_os(variable).map(PathBuf::from));
    }
    roots.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    let mut folders: Vec<PathBuf> = roots
        .iter()
        .flat_map(|root| [root.join("lib64"), root.join("lib")])
        .collect();
    folders.extend(
        [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/wsl/lib",
            "/usr/local/nvidia/lib64",
        ]
        .map(PathBuf::from),
    );
    let cache = std::env::var_os("LIKENESS_CACHE").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
        base.map(|base| base.join("likeness"))
    });
    let packages = cache
        .map(|cache| cache.join("cuda-libraries"))
        .into_iter()
        .chain(python_packages());
    for packages in packages {
        // pip's packages keep each library in a folder of its own: nvidia/cudnn/lib, nvidia/cu13/lib.
        let Ok(entries) = std::fs::read_dir(packages.join("nvidia")) else {
            continue;
        };
        let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path().join("lib")).collect();
        found.sort();
        folders.extend(found);
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// Where Python keeps packages, if there is a Python. Asked once.
fn python_packages() -> Vec<PathBuf> {
    static ANSWER: std::sync::OnceLock<Vec<PathBuf>> = std::sync::OnceLock::new();
    let ask = || {
        let mut command = Command::new("python3");
        command.args([
            "-c",
            "import sys; print('\\n'.join(p for p in sys.path if p.endswith('-packages')))",
        ]);
        let Ok(answer) = command.output() else {
            return Vec::new();
        };
        let text = String::from_utf8_lossy(&answer.stdout);
        text.lines().map(PathBuf::from).collect()
    };
    ANSWER.get_or_init(ask).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_gets_libraries_that_it_runs() {
        assert_eq!(blas_for(12_080).names, ["libcublasLt.so.12"]);
        assert_eq!(blas_for(13_000).names[0], "libcublasLt.so.13");
        assert!(advice(11_080).contains("525"));
        assert!(advice(12_080).contains("cublas-cu12") && advice(12_080).contains("580"));
        assert!(advice(13_010).contains("cudnn-cu13"));
    }
}
