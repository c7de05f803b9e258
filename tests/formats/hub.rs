use std::fs;
use std::path::PathBuf;

use llamaprobe::formats::hub::{CacheEnv, is_adapter_name, resolve, resolve_adapter};

use crate::support::temp;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache with one repository, as the hub's client lays it out.
fn cache(root: &std::path::Path) -> PathBuf {
    let repository = root.join("models--org--name");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("creates");
    fs::create_dir_all(repository.join("blobs")).expect("creates");
    fs::create_dir_all(repository.join("refs/refs/pr")).expect("creates");
    fs::write(repository.join("blobs/abc"), "{}").expect("writes");
    #[cfg(unix)]
    std::os::unix::fs::symlink("../../blobs/abc", snapshot.join("config.json")).expect("links");
    #[cfg(not(unix))]
    fs::write(snapshot.join("config.json"), "{}").expect("writes");
    for name in ["main", "v1", "refs/pr/1"] {
        fs::write(repository.join("refs").join(name), COMMIT).expect("writes");
    }
    snapshot
}

#[test]
fn the_variables_have_their_order() {
    let p = |s: &str| Some(PathBuf::from(s));
    let mut env = CacheEnv::default();
    assert_eq!(env.hub(), None);
    env.home = p("/h");
    assert_eq!(env.hub(), p("/h/.cache/huggingface/hub"));
    env.xdg_cache_home = p("/x");
    assert_eq!(env.hub(), p("/x/huggingface/hub"));
    env.hf_home = p("~/hf");
    assert_eq!(env.hub(), p("/h/hf/hub"));
    env.huggingface_hub_cache = p("/old");
    assert_eq!(env.hub(), p("/old"));
    env.hf_hub_cache = p("/new");
    assert_eq!(env.hub(), p("/new"));
    env.hf_hub_cache = p("");
    assert_eq!(env.hub(), p("/old"), "an empty variable is not set");
}

#[test]
fn names_and_revisions_resolve() {
    let dir = temp();
    let snapshot = cache(dir.path());
    let env = CacheEnv { hf_hub_cache: Some(dir.path().to_path_buf()), ..CacheEnv::default() };
    for revision in [None, Some("main"), Some("v1"), Some("refs/pr/1"), Some(COMMIT)] {
        assert_eq!(resolve("org/name", revision, &env).expect("resolves"), snapshot, "{revision:?}");
    }
    let local = snapshot.display().to_string();
    assert_eq!(resolve(&local, None, &env).expect("a directory"), snapshot);
}

#[test]
fn what_is_not_there_is_explained() {
    let dir = temp();
    let snapshot = cache(dir.path());
    let repository = dir.path().join("models--org--name");
    let env = CacheEnv { hf_hub_cache: Some(dir.path().to_path_buf()), ..CacheEnv::default() };
    let fails = |model: &str, revision: Option<&str>, words: &[&str]| {
        let error = resolve(model, revision, &env).expect_err(model).to_string();
        for word in words {
            assert!(error.contains(word), "{model} {revision:?}: {word:?} in {error}");
        }
    };
    fails("org/other", None, &["model", "org/other", "models--org--other"]);
    fails("org/name/extra", None, &["model", "org/name/extra"]);
    fails("../name", None, &["model", "../name"]);
    fails("org/..", None, &["model"]);
    fails("org/name", Some("dev"), &["revision", "dev", "main", "v1"]);
    fails("org/name", Some("../../main"), &["revision"]);
    fails("org/name", Some(&COMMIT.replace('0', "f")), &["snapshot", COMMIT]);
    fails(&snapshot.display().to_string(), Some("main"), &["revision", "directory"]);
    fs::write(repository.join("refs/bad"), "not a commit\n").expect("writes");
    fails("org/name", Some("bad"), &["refs/bad", "40", "not a commit"]);
    fs::remove_file(snapshot.join("config.json")).expect("removes");
    fails("org/name", None, &["config.json", "not downloaded"]);
    fs::create_dir_all(repository.join(".no_exist").join(COMMIT)).expect("creates");
    fs::write(repository.join(".no_exist").join(COMMIT).join("config.json"), "").expect("writes");
    fails("org/name", None, &["config.json", "has no such file"]);
    let error = resolve("org/name", None, &CacheEnv::default()).expect_err("no cache").to_string();
    assert!(error.contains("HF_HOME"), "{error}");
}

#[test]
fn adapters_of_the_cache_are_found() {
    let dir = temp();
    let snapshot = cache(dir.path());
    let env = CacheEnv { hf_hub_cache: Some(dir.path().to_path_buf()), ..CacheEnv::default() };
    let error = resolve_adapter("adapter", "org/name", &env).expect_err("a model alone").to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
    fs::rename(snapshot.join("config.json"), snapshot.join("adapter_config.json")).expect("renames");
    assert_eq!(resolve_adapter("adapter", "org/name", &env).expect("an adapter"), snapshot);
    assert_eq!(resolve("org/name", None, &env).expect("found, for its base model"), snapshot);
    let lost = resolve_adapter("init_adapter", "org/other", &env).expect_err("not there").to_string();
    assert!(lost.starts_with("init_adapter"), "{lost}");
    assert!(is_adapter_name("org/name") && !is_adapter_name("name") && !is_adapter_name("/a/b"));
}
