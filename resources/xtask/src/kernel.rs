//! The guest kernel: Debian's `linux-source` with the patches and fragments of `resources/kernel/`. It is built once
//! and cached by its inputs. `resources/kernel/README.md` describes how the configuration was chosen.

mod fragments;
mod image;
mod jump_table;
mod patches;
mod progress;
mod source;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::checkout::top;
use crate::steps::run_aside;
use crate::{apt, cache};
use fragments::Options;
use patches::Patches;
pub use source::PACKAGE;
use source::Source;

/// Packages that the build needs.
const TOOLS: &[&str] = &[
    "bc",
    "bison",
    "cpio",
    "flex",
    "gcc",
    "kmod",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "make",
    "patch",
    "rsync",
    "xz-utils",
    "zstd",
];

/// Variables of each run of make. Date, user, host and build number would otherwise make every build different.
const MAKE: &[&str] = &[
    "ARCH=x86_64",
    "LOCALVERSION=",
    "KBUILD_BUILD_TIMESTAMP=2026-01-01",
    "KBUILD_BUILD_USER=vmm",
    "KBUILD_BUILD_HOST=vmm",
    "KBUILD_BUILD_VERSION=1",
    // GCC 12 clears and copies objects of unknown size with an inline `rep stosb`, which is slow on processors without
    // fast strings; the kernel's own functions choose by the processor's features.
    concat!(
        "KCFLAGS=-mmemset-strategy=unrolled_loop:256:noalign,libcall:-1:noalign",
        " -mmemcpy-strategy=unrolled_loop:256:noalign,libcall:-1:noalign"
    ),
];

/// Version of the recipe. It increases with changes outside of [`MAKE`], the fragments and the patches, such as the
/// layout of the image.
const RECIPE: u32 = 1;

/// A guest kernel. The variants differ in their fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The kernel for ordinary containers, with the fragments of `resources/kernel`.
    Base,
    /// The kernel for containers with CAP_SYS_ADMIN or CAP_NET_ADMIN, with those of `resources/kernel/full` as well.
    Full,
}

impl Variant {
    /// Returns the folders of the variant's fragments in this checkout.
    fn fragment_folders(self) -> Vec<PathBuf> {
        let base = fragment_folder();
        match self {
            Variant::Base => vec![base],
            Variant::Full => vec![base.join("full"), base],
        }
    }

    /// Returns the name of the folder of object files in the cache.
    fn objects(self) -> &'static str {
        match self {
            Variant::Base => "objects",
            Variant::Full => "objects-full",
        }
    }
}

/// Paths of the files of a built guest kernel.
#[derive(Debug, Clone)]
pub struct KernelFiles {
    /// Uncompressed ELF file with a 64-bit entry point, packed by [`image::pack`].
    pub vmlinux: PathBuf,
    /// bzImage: the compressed kernel with the header of the Linux boot protocol.
    pub bzimage: PathBuf,
    /// Complete configuration.
    pub config: PathBuf,
    /// Version of [`PACKAGE`] from which it was built.
    pub version: String,
}

impl KernelFiles {
    fn in_folder(folder: &Path, source: &Source) -> KernelFiles {
        let [vmlinux, bzimage, config] = ["vmlinux", "bzImage", "config"].map(|name| folder.join(name));
        KernelFiles { vmlinux, bzimage, config, version: source.version.clone() }
    }
}

/// Returns a guest kernel of this checkout. Builds it first if it is not cached; concurrent runs wait for each other.
/// If an option of a fragment has another value in the resulting configuration, the build fails.
pub fn kernel(variant: Variant) -> anyhow::Result<KernelFiles> {
    let options = options(variant)?;
    let patches = Patches::read(&fragment_folder().join("patches"))?;
    let cache = cache::dir("kernel");
    let folder_of = |source: &Source| cache.join(key(&options, &patches, &source.version));
    // A cached kernel never changes, so that only builds need the lock.
    let source = Source::newest()?;
    let folder = folder_of(&source);
    if folder.is_dir() {
        return Ok(KernelFiles::in_folder(&folder, &source));
    }
    let _lock = lock(&cache.join("lock"))?;
    // apt's lists may be outdated. A refresh after this build could bring a newer version and cause another build.
    // Without a network the old lists suffice if the source is in the cache.
    if let Err(error) = apt::update() {
        eprintln!("kernel: apt's lists are not refreshed: {error:#}");
    }
    let source = Source::newest()?;
    let folder = folder_of(&source);
    if !folder.is_dir() {
        let staged = cache.join("staged");
        apt::install(TOOLS)?;
        let tree = source.unpack(&cache, &patches)?;
        let objects = objects(&cache, variant)?;
        eprintln!("kernel: compiling {}", source.version);
        build(&options, &source, &tree, &objects, &staged)?;
        fs::rename(&staged, &folder).with_context(|| format!("rename to {}", folder.display()))?;
    }
    Ok(KernelFiles::in_folder(&folder, &source))
}

/// Returns the variables of [`MAKE`] for a shell, one a line.
pub fn make_words() -> String {
    MAKE.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" \\\n        ")
}

/// Returns the folder of the fragments in this checkout.
fn fragment_folder() -> PathBuf {
    top().join("resources/kernel")
}

fn options(variant: Variant) -> anyhow::Result<Options> {
    let mut files = Vec::new();
    for folder in variant.fragment_folders() {
        let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        files.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "config")));
    }
    files.sort();
    let mut all = Options::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        fragments::add(&mut all, &name, &text)?;
    }
    Ok(all)
}

/// Returns the cache key of a build: equal keys mean equal kernels. Comments and the order of lines do not matter.
fn key(options: &Options, patches: &Patches, version: &str) -> String {
    let (make, patches, options) = (MAKE.join("\n"), patches.digest(), fragments::render(options));
    let text = format!("{RECIPE}\n{make}\n{version}\n{patches}\n{options}");
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("kernel: waiting for another build");
            file.lock().with_context(|| format!("lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    Ok(file)
}

/// Returns the folder of a variant's object files. A new one begins with those of the base kernel: Kbuild compiles only
/// files that depend on a different option.
fn objects(cache: &Path, variant: Variant) -> anyhow::Result<PathBuf> {
    let [objects, base] = [variant, Variant::Base].map(|variant| cache.join(variant.objects()));
    if !objects.exists() && base.exists() {
        let copy = cache.join("objects-copy");
        let _ = fs::remove_dir_all(&copy);
        run_aside(Command::new("cp").arg("-a").args([&base, &copy]))?;
        fs::rename(&copy, &objects).with_context(|| format!("rename to {}", objects.display()))?;
    }
    Ok(objects)
}

fn build(
    options: &Options,
    source: &Source,
    tree: &Path,
    objects: &Path,
    staged: &Path,
) -> anyhow::Result<()> {
    configure(options, tree, objects)?;
    eprintln!("kernel: log: {}", objects.join("log").display());
    let mut make = make(tree, objects);
    make.arg(format!("-j{}", available_parallelism().map_or(1, usize::from))).args(["vmlinux", "bzImage"]);
    progress::run(&mut make, &objects.join("log"))?;

    let _ = fs::remove_dir_all(staged);
    fs::create_dir(staged).with_context(|| format!("create {}", staged.display()))?;
    let mut elf = fs::read(objects.join("vmlinux")).context("read the built vmlinux")?;
    let symbols = fs::read_to_string(objects.join("System.map")).context("read System.map")?;
    let table = jump_table::addresses(&symbols)?;
    jump_table::sort(image::bytes_at(&mut elf, table.clone())?, table.start)?;
    let files = KernelFiles::in_folder(staged, source);
    fs::write(&files.vmlinux, image::pack(&elf)?)
        .with_context(|| format!("write {}", files.vmlinux.display()))?;
    fs::copy(objects.join("arch/x86/boot/bzImage"), &files.bzimage).context("copy bzImage")?;
    fs::copy(objects.join(".config"), &files.config).context("copy .config")?;
    // Symbols for debugging.
    fs::copy(objects.join("System.map"), staged.join("System.map")).context("copy System.map")?;
    Ok(())
}

/// Writes a `.config` in which all options are off that the fragments neither set nor select.
fn configure(options: &Options, tree: &Path, objects: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(objects).with_context(|| format!("create {}", objects.display()))?;
    let fragments = objects.join("fragments.config");
    fs::write(&fragments, fragments::render(options))
        .with_context(|| format!("write {}", fragments.display()))?;
    let mut make = make(tree, objects);
    make.arg(format!("KCONFIG_ALLCONFIG={}", fragments.display())).arg("allnoconfig");
    progress::run(&mut make, &objects.join("log"))?;
    let config = fs::read_to_string(objects.join(".config")).context("read .config")?;
    let differences = fragments::differences(options, &config);
    if !differences.is_empty() {
        bail!("options of the fragments are not in the configuration:\n  {}", differences.join("\n  "));
    }
    Ok(())
}

fn make(tree: &Path, objects: &Path) -> Command {
    let mut make = Command::new("make");
    // A make that runs this task must not affect this one, for example with its job server.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env("LC_ALL", "C");
    make.arg("-C").arg(tree).arg(format!("O={}", objects.display())).args(MAKE);
    make
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_values_and_not_on_comments() {
        let patches = Patches::read(&fragment_folder().join("patches")).unwrap();
        let of = |text: &str| {
            let mut all = Options::new();
            fragments::add(&mut all, "a.config", text).unwrap();
            key(&all, &patches, "6.1.1-1")
        };
        assert_eq!(of("CONFIG_A=y\nCONFIG_B=y\n"), of("# why\nCONFIG_B=y\n\nCONFIG_A=y\n"));
        assert_ne!(of("CONFIG_A=y\n"), of("CONFIG_A=n\n"));
        assert_ne!(of("CONFIG_A=y\n"), key(&Options::new(), &patches, "6.1.1-1"));
    }

    #[test]
    fn fragments_of_this_checkout_parse() {
        let [base, full] = [Variant::Base, Variant::Full].map(|variant| options(variant).unwrap());
        assert!(
            base.contains_key("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES") && !base.contains_key("CONFIG_BRIDGE")
        );
        assert!(base.keys().all(|option| full.contains_key(option)) && full.contains_key("CONFIG_BRIDGE"));
    }
}
