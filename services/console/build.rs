//! Builds the console with npm, and lists its files for the program.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

/// What the console is built from, in `web`.
const SOURCES: [&str; 7] = [
    ".npmrc",
    "index.html",
    "package.json",
    "package-lock.json",
    "src",
    "tsconfig.json",
    "vite.config.ts",
];

fn main() -> anyhow::Result<()> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed=web/{source}");
    }
    println!("cargo::rerun-if-changed=web/absent.html");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let built = match build(&out.join("web")) {
        Ok(dist) => dist,
        Err(error) => {
            println!("cargo::warning=the console is not built: {error:#}");
            let dist = out.join("absent");
            fs::create_dir_all(&dist)?;
            fs::copy("web/absent.html", dist.join("index.html"))?;
            dist
        }
    };
    fs::write(out.join("files.rs"), list(&built)?)?;
    Ok(())
}

/// Builds the console in `dir`; returns the folder of the result. Packages are installed again only if their list has
/// changed.
fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    let lock = fs::read("web/package-lock.json")?;
    let installed = dir.join("installed.json");
    for source in SOURCES {
        copy(&Path::new("web").join(source), &dir.join(source))?;
    }
    if fs::read(&installed).ok().as_ref() != Some(&lock) {
        run(Command::new("npm").args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]), dir)?;
        fs::write(&installed, lock)?;
    }
    run(Command::new("npm").args(["run", "--silent", "build"]), dir)?;
    Ok(dir.join("dist"))
}

fn run(command: &mut Command, dir: &Path) -> anyhow::Result<()> {
    let output = command.current_dir(dir).output();
    let output = output.with_context(|| format!("{command:?} (Debian: apt-get install npm)"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().replace('\n', "; ");
    ensure!(output.status.success(), "{command:?}: {text}");
    Ok(())
}

/// Copies a file or a folder; what is no longer in the folder is removed.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        let _ = fs::remove_dir_all(to);
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else {
        fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
        fs::copy(from, to).with_context(|| format!("{}", from.display()))?;
    }
    Ok(())
}

/// The Rust source that embeds the files of a folder.
fn list(dist: &Path) -> anyhow::Result<String> {
    let page = file("index.html", &dist.join("index.html"))?;
    let mut assets = Vec::new();
    let entries = fs::read_dir(dist.join("assets")).into_iter().flatten();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a name is UTF-8")?;
        if !name.ends_with(".gz") {
            assets.push(file(name, &path)?);
        }
    }
    assets.sort_unstable();
    let assets = assets.join(",\n");
    Ok(format!("static PAGE: File = {page};\nstatic ASSETS: &[File] = &[{assets}];\n"))
}

fn file(name: &str, path: &Path) -> anyhow::Result<String> {
    let content = fs::read(path)?;
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let etag = format!("\"{:016x}\"", hasher.finish());
    let content_type = match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let packed = PathBuf::from(format!("{}.gz", path.display()));
    let gzip = match packed.is_file() {
        true => format!("Some(include_bytes!({packed:?}))"),
        false => "None".to_owned(),
    };
    Ok(format!(
        "File {{ name: {name:?}, content_type: {content_type:?}, etag: {etag:?}, \
         content: include_bytes!({path:?}), gzip: {gzip} }}"
    ))
}
