//! Finds files of a crate that import each other in a circle.
//!
//! A module may use what its submodules define, and they what it defines: they are one room. Tests do not count, and
//! neither does a `pub use`, which only hands a name on: an import of that name counts for the file that defines it. Paths
//! in the arguments of macros are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ItemUse, UseTree, Visibility};

/// Limit of imports that hand one name on to each other.
const HOPS_MAX: usize = 8;

/// A path of modules below a crate's root, and the name of an item at its end.
type Names = Vec<String>;

/// What a file defines and uses.
#[derive(Debug, Default)]
struct Room {
    /// The file's module; empty for the crate's root.
    module: Names,
    items: BTreeSet<String>,
    /// What names of the file stand for, from the crate's root on.
    imports: BTreeMap<String, Names>,
    /// Paths that the file uses, as they are written.
    paths: Vec<Names>,
    /// Paths that it imports for its own use, as they are written.
    uses: Vec<(String, Names)>,
    handed_on: Vec<(String, Names)>,
}

/// Lists a circle of each crate that has one. `sources` are all Rust files of the workspace.
pub fn violations(top: &Path, sources: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut crates: BTreeMap<PathBuf, Vec<Room>> = BTreeMap::new();
    for path in sources {
        let Some((root, module)) = place(top, path) else { continue };
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let room = Room::parse(module, &text).with_context(|| format!("parse {}", path.display()))?;
        crates.entry(root).or_default().push(room);
    }
    let circles = crates.into_iter().filter_map(|(root, rooms)| Some((root, circle(rooms)?)));
    Ok(circles.map(|(root, circle)| format!("{}: circle of files: {circle}", root.display())).collect())
}

/// Splits the path of a source file of the product into its crate's source folder and its module. A program beside a
/// library is a crate of its own, which nothing imports.
fn place(top: &Path, path: &Path) -> Option<(PathBuf, Names)> {
    let name = path.strip_prefix(top).ok()?.with_extension("");
    let parts: Names = name.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let src = parts.iter().position(|part| part == "src")?;
    let (root, module) = parts.split_at(src + 1);
    let is_test = parts.iter().any(|part| part == "tests" || part == "testing");
    let root: PathBuf = root.iter().collect();
    match module {
        _ if is_test => None,
        [bin, ..] if bin == "bin" => None,
        [main] if main == "main" && top.join(&root).join("lib.rs").exists() => None,
        [file] if file == "main" || file == "lib" => Some((root, Names::new())),
        _ => Some((root, module.to_vec())),
    }
}

impl Room {
    fn parse(module: Names, text: &str) -> syn::Result<Room> {
        let mut room = Room { module, ..Room::default() };
        room.visit_file(&syn::parse_file(text)?);
        Ok(room)
    }

    /// Adds the paths of an import.
    fn import(&mut self, tree: &UseTree, before: &[String], hands_on: bool) {
        let path = |name: &dyn ToString| [before, &[name.to_string()]].concat();
        let (name, path) = match tree {
            UseTree::Path(step) => return self.import(&step.tree, &path(&step.ident), hands_on),
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(tree, before, hands_on));
            }
            UseTree::Name(item) => (item.ident.to_string(), path(&item.ident)),
            UseTree::Rename(item) => (item.rename.to_string(), path(&item.ident)),
            UseTree::Glob(_) => ("*".to_owned(), path(&'*')),
        };
        let list = if hands_on { &mut self.handed_on } else { &mut self.uses };
        list.push((name, path));
    }

    /// Returns a path from the crate's root on. `None` if it leads out of the crate.
    fn absolute(&self, path: &[String], modules: &BTreeMap<Names, usize>) -> Option<Names> {
        let (first, rest) = path.split_first()?;
        if let "crate" | "self" = first.as_str() {
            let start = if first == "self" { &self.module[..] } else { &[] };
            return Some([start, rest].concat());
        }
        let ups = path.iter().take_while(|step| *step == "super").count();
        if ups > 0 {
            let start = self.module.get(..self.module.len().checked_sub(ups)?)?;
            return Some([start, &path[ups..]].concat());
        }
        let child = [&self.module[..], std::slice::from_ref(first)].concat();
        if modules.contains_key(&child) {
            return Some([&child[..], rest].concat());
        }
        Some([self.imports.get(first)?, rest].concat())
    }
}

/// Whether an item exists in tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list().ok().filter(|list| list.path.is_ident("cfg"));
        list.is_some_and(|list| list.tokens.to_string() == "test")
    })
}

fn attributes(item: &Item) -> (&[Attribute], Option<String>) {
    macro_rules! named {
        ($($kind:ident),*) => {
            match item {
                $(Item::$kind(item) => (&item.attrs, Some(item.ident.to_string())),)*
                Item::Fn(item) => (&item.attrs, Some(item.sig.ident.to_string())),
                Item::Macro(item) => (&item.attrs, item.ident.as_ref().map(ToString::to_string)),
                Item::Impl(item) => (&item.attrs, None),
                Item::Use(item) => (&item.attrs, None),
                _ => (&[], None),
            }
        };
    }
    named!(Const, Enum, Mod, Static, Struct, Trait, Type, Union)
}

impl<'ast> Visit<'ast> for Room {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = attributes(item);
        if is_test(attributes) {
            return;
        }
        if !matches!(item, Item::Mod(module) if module.content.is_none()) {
            self.items.extend(name);
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes: &[Attribute] = if let ImplItem::Fn(function) = item { &function.attrs } else { &[] };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.import(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

/// The rooms of one crate.
struct Crate {
    rooms: Vec<Room>,
    modules: BTreeMap<Names, usize>,
}

impl Crate {
    fn new(rooms: Vec<Room>) -> Crate {
        let modules: BTreeMap<Names, usize> =
            rooms.iter().enumerate().map(|(at, room)| (room.module.clone(), at)).collect();
        let mut all = Crate { rooms, modules };
        for at in 0..all.rooms.len() {
            let room = &all.rooms[at];
            let known = room.uses.iter().chain(&room.handed_on);
            let known =
                known.filter_map(|(name, path)| Some((name.clone(), room.absolute(path, &all.modules)?)));
            all.rooms[at].imports = known.collect();
        }
        all
    }

    /// Returns the room that defines what `path` names, and the item's name.
    fn find(&self, path: &[String], hops: usize) -> Option<(usize, String)> {
        let prefixes = (0..path.len()).rev();
        let (len, at) = prefixes.filter_map(|len| Some((len, *self.modules.get(&path[..len])?))).next()?;
        let (room, name) = (&self.rooms[at], &path[len]);
        if room.items.contains(name) || name == "*" {
            return Some((at, name.clone()));
        }
        let target = room.imports.get(name).filter(|_| hops < HOPS_MAX)?;
        self.find(&[target, &path[len + 1..]].concat(), hops + 1)
    }

    /// The rooms that a room uses, each with a name that it uses of it. Those that contain it are left out.
    fn used_by(&self, at: usize) -> BTreeMap<usize, String> {
        let room = &self.rooms[at];
        let paths = room.uses.iter().map(|(_, path)| path).chain(&room.paths);
        let found = paths.filter_map(|path| self.find(&room.absolute(path, &self.modules)?, 0));
        found.filter(|(used, _)| !room.module.starts_with(&self.rooms[*used].module)).collect()
    }
}

/// Describes a circle of `rooms`, if there is one.
fn circle(rooms: Vec<Room>) -> Option<String> {
    let all = Crate::new(rooms);
    let mut edges: BTreeMap<usize, BTreeMap<usize, String>> =
        (0..all.rooms.len()).map(|at| (at, all.used_by(at))).collect();
    // What uses nothing that is left is in no circle.
    loop {
        let left: BTreeSet<usize> = edges.keys().copied().collect();
        edges.values_mut().for_each(|used| used.retain(|at, _| left.contains(at)));
        edges.retain(|_, used| !used.is_empty());
        if edges.len() == left.len() {
            break;
        }
    }
    // Each room that is left uses one that is left, so every walk comes back to a room.
    let mut walk = vec![*edges.keys().next()?];
    loop {
        let (next, _) = edges[walk.last()?].first_key_value()?;
        if let Some(start) = walk.iter().position(|at| at == next) {
            let name = |at: &usize| all.rooms[*at].module.join("/");
            let step = |at: &usize| {
                let (used, item) = edges[at].first_key_value().expect("rooms that are left use one");
                format!("{} uses {item} of {}", name(at), name(used))
            };
            return Some(walk[start..].iter().map(step).collect::<Vec<_>>().join(", "));
        }
        walk.push(*next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(files: &[(&str, &str)]) -> Vec<Room> {
        let module =
            |name: &str| name.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        files.iter().map(|(name, text)| Room::parse(module(name), text).unwrap()).collect()
    }

    #[test]
    fn two_files_that_use_each_other_are_a_circle() {
        let found = circle(rooms(&[
            ("", "mod a; mod b;"),
            ("a", "use crate::b::B; pub struct A(B);"),
            ("b", "pub struct B; impl B { fn new(_: &super::a::A) {} }"),
        ]));
        assert_eq!(found.unwrap(), "a uses B of b, b uses A of a");
    }

    #[test]
    fn a_circle_is_found_through_names_that_are_handed_on_and_modules_that_are_imported() {
        let found = circle(rooms(&[
            ("", "mod a; mod b; pub use b::c::C;"),
            ("a", "use crate::{C, other}; pub fn make() -> C {}"),
            ("b", "pub mod c;"),
            ("b/c", "use crate::a; pub struct C; fn f() { a::make() }"),
        ]));
        assert_eq!(found.unwrap(), "a uses C of b/c, b/c uses make of a");
    }

    #[test]
    fn a_module_and_its_submodules_and_tests_are_no_circle() {
        let found = circle(rooms(&[
            ("", "mod a; mod b; pub type Result = (); fn f() { a::f() }"),
            ("a", "mod inner; use crate::Result; use inner::Inner; pub struct A; pub fn f() {}"),
            ("a/inner", "use super::A; pub struct Inner(A);"),
            ("b", "use crate::a::A; pub struct B(A);"),
            ("c", "pub struct C; #[cfg(test)] mod tests { use crate::d::D; }"),
            ("d", "use crate::c::C; pub struct D(C);"),
        ]));
        assert_eq!(found, None);
    }
}
