//! Checks the links in the repository's Markdown files: the target of each relative link and each `#anchor` must exist.
//!
//! Links to other sites are not checked: that needs a network, and the check would fail whenever a site is down.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

/// Returns a line for each broken link in `files`, which are below `top`.
pub fn violations(top: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for path in files {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let name = path.strip_prefix(top).unwrap_or(path);
        for link in links(&text) {
            if let Some(reason) = broken(top, name, &text, &link.target)? {
                violations.push(format!(
                    "{}:{}: link to {}: {reason}",
                    name.display(),
                    link.line,
                    link.target
                ));
            }
        }
    }
    Ok(violations)
}

/// A link in a Markdown file.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    /// Number of the line that contains the target, from 1.
    line: usize,
    /// Path, `#anchor`, or both.
    target: String,
}

/// Returns the links of a Markdown text: `[text](target)`, images, and definitions `[name]: target`.
fn links(text: &str) -> Vec<Link> {
    let text = without_code(text);
    let mut links = Vec::new();
    for (at, _) in text.match_indices("](") {
        let rest = &text[at + 2..];
        let Some(end) = rest.find(')') else { continue };
        links.extend(link(&text, at, &rest[..end]));
    }
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if let Some((_, target)) = line.split_once("]: ").filter(|_| line.starts_with('[')) {
            links.extend(link(&text, at, target));
        }
        at += line.len();
    }
    links
}

/// Returns the link at offset `at`, without the title that may follow its target.
fn link(text: &str, at: usize, target: &str) -> Option<Link> {
    let target = target.split_whitespace().next()?.trim_matches(['<', '>']).to_owned();
    Some(Link { line: text[..at].matches('\n').count() + 1, target })
}

/// Blanks fenced blocks and code spans. Line numbers do not change.
fn without_code(text: &str) -> String {
    let mut fence = None;
    let mut plain = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let marker = ["```", "~~~"].into_iter().find(|marker| line.trim_start().starts_with(marker));
        let closes = fence.is_some() && marker == fence;
        if fence.is_none() && marker.is_none() {
            plain.push_str(line);
        } else {
            plain.push('\n');
            fence = if closes { None } else { fence.or(marker) };
        }
    }
    without_spans(&plain)
}

/// Blanks code spans. A span may cross the end of a line, but not the end of a paragraph.
fn without_spans(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('`') {
        let ticks = rest[start..].len() - rest[start..].trim_start_matches('`').len();
        let (before, span) = rest.split_at(start);
        plain.push_str(before);
        let body = &span[ticks..];
        let paragraph = &body[..body.find("\n\n").unwrap_or(body.len())];
        // A backtick without a closing one is an ordinary character.
        let end = paragraph.find(&span[..ticks]).map_or(0, |end| end + ticks);
        plain.extend(body[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &body[end..];
    }
    plain + rest
}

/// Returns why a link to `target` is broken, or `None`. The link is in the file `name` with the content `text`.
fn broken(top: &Path, name: &Path, text: &str, target: &str) -> anyhow::Result<Option<String>> {
    if has_scheme(target) {
        return Ok(None);
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    if path.is_empty() {
        return Ok(anchor.and_then(|anchor| missing_anchor(text, anchor)));
    }
    let Some(inside) = resolve(name, path) else {
        return Ok(Some("outside of the repository".to_owned()));
    };
    let found = top.join(&inside);
    if !found.exists() {
        return Ok(Some(format!("{} does not exist", inside.display())));
    }
    let Some(anchor) = anchor else { return Ok(None) };
    if inside.extension().is_none_or(|extension| extension != "md") {
        return Ok(Some("only Markdown files have anchors".to_owned()));
    }
    let text = fs::read_to_string(&found).with_context(|| format!("read {}", found.display()))?;
    Ok(missing_anchor(&text, anchor))
}

/// Whether a target has a scheme, such as `https:`.
fn has_scheme(target: &str) -> bool {
    let scheme = |text: &str| text.len() > 1 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    target.split_once(':').is_some_and(|(before, _)| scheme(before))
}

/// Resolves `path` in the file `name` to a path below the repository's top; `None` if it is outside of the repository.
fn resolve(name: &Path, path: &str) -> Option<PathBuf> {
    let from = if path.starts_with('/') { Path::new("") } else { name.parent()? };
    let mut inside = PathBuf::new();
    for component in from.join(path.trim_start_matches('/')).components() {
        match component {
            Component::ParentDir => inside.pop().then_some(())?,
            Component::Normal(part) => inside.push(part),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(inside)
}

fn missing_anchor(text: &str, anchor: &str) -> Option<String> {
    (!anchors(text).contains(anchor)).then(|| format!("no heading has the anchor #{anchor}"))
}

/// Returns the anchors of a text's headings as code hosts derive them: in lower case, with hyphens for spaces, without
/// punctuation except `-` and `_`, and with a number after a repeated heading.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut anchors = BTreeSet::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let heading = line.trim_start_matches('#');
        let level = line.len() - heading.len();
        if fenced || !(1..=6).contains(&level) || !heading.starts_with(' ') {
            continue;
        }
        let slug = slug(heading.trim());
        let count = seen.entry(slug.clone()).or_default();
        anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    anchors
}

fn slug(heading: &str) -> String {
    // Of a link in a heading only the text counts.
    let mut parts = heading.split("](");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| shown.push_str(part.split_once(')').map_or(part, |(_, after)| after)));
    let lower = shown.to_lowercase();
    let kept = lower.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c => c.is_alphanumeric().then_some(c),
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<(usize, String)> {
        links(text).into_iter().map(|link| (link.line, link.target)).collect()
    }

    fn link_at(line: usize, target: &str) -> (usize, String) {
        (line, target.to_owned())
    }

    /// Returns the violations of a file `docs/a.md` with the content `text`, in a repository with a few files.
    fn violations_of(text: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        fs::create_dir(top.join("docs")).unwrap();
        fs::write(top.join("README.md"), "# Top\n\n## Try it\n").unwrap();
        fs::write(top.join("main.rs"), "").unwrap();
        let path = top.join("docs/a.md");
        fs::write(&path, text).unwrap();
        violations(top, &[path]).unwrap()
    }

    #[test]
    fn links_images_and_definitions_are_found_with_their_lines() {
        let text = "a [b](c.md) and [d\ne](f.md#g \"title\")\n![h](i.svg)\n\n[j]: <k.md>\n";
        assert_eq!(
            targets(text),
            [link_at(1, "c.md"), link_at(2, "f.md#g"), link_at(3, "i.svg"), link_at(5, "k.md")]
        );
    }

    #[test]
    fn code_has_no_links() {
        let text =
            "```\n[a](b)\n```\n`[c](d)` ``[e]`(f)`` [`g`](h)\n~~~\n```\n[i](j)\n~~~\n[k](l) a ` alone\n\n`\n";
        assert_eq!(targets(text), [link_at(4, "h"), link_at(9, "l")]);
    }

    #[test]
    fn valid_links_are_no_violations() {
        let text = "# A b\n[a](../README.md#try-it) [b](#a-b) [c](../main.rs) [d](..) [e](/README.md)\n\
                    [f](https://example.org/x#y) [g](mailto:a@example.org)\n";
        assert_eq!(violations_of(text), [""; 0]);
    }

    #[test]
    fn broken_links_are_listed_with_file_line_and_reason() {
        for (link, reason) in [
            ("b.md", "docs/b.md does not exist"),
            ("README.md", "docs/README.md does not exist"),
            ("../README.md#tried", "no heading has the anchor #tried"),
            ("#b", "no heading has the anchor #b"),
            ("../main.rs#L1", "only Markdown files have anchors"),
            ("../../etc/passwd", "outside of the repository"),
        ] {
            let violations = violations_of(&format!("# A\n\n[x]({link})\n"));
            assert_eq!(violations, [format!("docs/a.md:3: link to {link}: {reason}")]);
        }
    }

    #[test]
    fn anchors_are_those_of_code_hosts() {
        let text = "# Top\n## `vmm run`: what it does\n## A, b & c\n## Same\n## Same\n\
                    ```\n# no heading\n```\n#none\n## [x](y) z_1\n";
        let expected = ["a-b--c", "same", "same-1", "top", "vmm-run-what-it-does", "x-z_1"];
        assert_eq!(anchors(text).into_iter().collect::<Vec<_>>(), expected);
    }
}
