//! Plots of series as SVG.

use std::fmt::Write;

use super::series::Series;

/// Height of a row in pixels.
const ROW: usize = 34;
/// Left end and maximum length of the bars in pixels.
const LEFT: f64 = 250.0;
const WIDTH: f64 = 520.0;
/// Height of the curves' plot in pixels, without its margins.
const HEIGHT: f64 = 360.0;
/// Colours of parts and curves.
const COLOURS: [&str; 9] =
    ["#2a6f97", "#a9a9a9", "#e07a5f", "#3d405b", "#81b29a", "#f2cc8f", "#6d597a", "#b56576", "#355070"];

/// Draws a bar for the median of each series and a line for its spread, all on one scale.
pub fn bars(series: &[Series], unit: &str) -> String {
    let longest = series.iter().map(|s| s.spread().1).fold(1.0, f64::max);
    let x = |value: f64| LEFT + value / longest * WIDTH;
    let height = (series.len() + 1) * ROW;
    let mut svg = begin(height, &format!("{unit}: median, minimum to maximum"));
    for (row, one) in series.iter().enumerate() {
        let y = (row + 1) * ROW;
        let (min, max) = one.spread();
        let fill = if one.name.starts_with("vmm") { "#2a6f97" } else { "#a9a9a9" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{text}\">{name}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"20\" fill=\"{fill}\"/>\
             <line x1=\"{a:.1}\" x2=\"{b:.1}\" y1=\"{line}\" y2=\"{line}\" stroke=\"black\"/>\
             <text x=\"{label:.1}\" y=\"{text}\">{median:.1}</text>",
            text = y + 15,
            name = one.name,
            width = x(one.median()) - LEFT,
            a = x(min),
            b = x(max),
            line = y + 10,
            label = x(max) + 6.0,
            median = one.median(),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Draws one bar whose parts are the medians of the series, with a legend.
pub fn stack(parts: &[Series], unit: &str) -> String {
    let whole: f64 = parts.iter().map(|part| part.median().max(0.0)).sum::<f64>().max(f64::MIN_POSITIVE);
    let mut svg = begin((parts.len() + 3) * ROW, &format!("{unit}: medians, together {whole:.1}"));
    let mut x = 8.0;
    for (row, part) in parts.iter().enumerate() {
        let (width, fill) = (part.median().max(0.0) / whole * 840.0, COLOURS[row % COLOURS.len()]);
        let y = (row + 2) * ROW;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"30\" width=\"{width:.1}\" height=\"28\" fill=\"{fill}\"/>\
             <rect x=\"8\" y=\"{y}\" width=\"14\" height=\"14\" fill=\"{fill}\"/>\
             <text x=\"30\" y=\"{text}\">{median:.1}  {name}</text>",
            text = y + 12,
            median = part.median(),
            name = part.name,
        );
        x += width;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Draws a curve for each contender: series named `contender size`, over the logarithm of the size.
pub fn curves(series: &[Series], axis: &str, unit: &str) -> String {
    let points: Vec<(&str, f64, f64)> = series.iter().filter_map(point).collect();
    let bounds = |of: fn(&(&str, f64, f64)) -> f64| {
        points
            .iter()
            .map(of)
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
    };
    let ((left, right), (_, top)) = (bounds(|point| point.1.log2()), bounds(|point| point.2));
    let x = |size: f64| 60.0 + (size.log2() - left) / (right - left).max(1.0) * 600.0;
    let y = |value: f64| 40.0 + HEIGHT - value / top * HEIGHT;
    let mut svg = begin(HEIGHT as usize + 80, &format!("{unit}, over {axis}"));
    let mut names: Vec<&str> = points.iter().map(|point| point.0).collect();
    names.dedup();
    for (row, name) in names.iter().enumerate() {
        let fill = COLOURS[row % COLOURS.len()];
        let own = || points.iter().filter(|point| point.0 == *name);
        let line: Vec<String> =
            own().map(|(_, size, value)| format!("{:.1},{:.1}", x(*size), y(*value))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{fill}\" stroke-width=\"2\"/>\
             <text x=\"680\" y=\"{}\" fill=\"{fill}\">{name}</text>",
            line.join(" "),
            60 + row * 20,
        );
        for (_, size, value) in own() {
            let (x, y) = (x(*size), y(*value));
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{above:.1}\" fill=\"{fill}\" text-anchor=\"middle\">{value:.1}</text>\
                 <text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{size}</text>",
                above = y - 6.0,
                below = HEIGHT + 60.0,
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Returns the contender, the size and the median of a series named `contender size`.
fn point(series: &Series) -> Option<(&str, f64, f64)> {
    let (name, size) = series.name.rsplit_once(' ')?;
    Some((name, size.parse().ok()?, series.median()))
}

/// Begins a plot of `height` pixels with a title.
fn begin(height: usize, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"20\">{title}</text>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(names: &[&str]) -> Vec<Series> {
        let rows: Vec<_> =
            names.iter().map(|name| serde_json::json!({"name": name, "samples": [2.0, 1.0, 4.0]})).collect();
        super::super::series::read(&serde_json::json!({ "series": rows })).unwrap()
    }

    #[test]
    fn parts_fill_the_bar_in_their_order() {
        let svg = stack(&series(&["a", "b"]), "ms");
        assert!(svg.contains("together 4.0"), "{svg}");
        let second = svg.find("<rect x=\"428.0\"").expect("the second half begins in the middle");
        assert!(svg.find("<rect x=\"8.0\"").expect("the first half begins at the left") < second);
    }

    #[test]
    fn a_curve_has_a_point_for_each_size() {
        let svg = curves(&series(&["vmm 64", "vmm 1024", "QEMU microvm 64"]), "MiB", "ms");
        assert_eq!(svg.matches("<polyline").count(), 2, "{svg}");
        assert!(svg.contains("points=\"60.0,40.0 660.0,40.0\""), "{svg}");
    }
}
