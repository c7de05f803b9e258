#!/usr/bin/env bash
# plotters 0.3.7 with its svg backend (plotters-svg 0.3.7): text that is asked for at 20 pixels has `font-size="16.129032258064516"`,
# the size divided by 1.24, and coordinates are whole pixels, so that a curve drawn in the size of the page has steps.
#
# Expected: the size that was asked for, in units of the drawing, and coordinates as they were computed.
# Who wants text of a size asks for 1.24 times as much; who wants smooth curves draws at several times the scale.
source "$(dirname "$0")/findings.sh"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "seen"
version = "0.1.0"
edition = "2021"
[dependencies]
plotters = { version = "=0.3.7", default-features = false, features = ["svg_backend", "line_series"] }
plotters-svg = "=0.3.7"
TOML
cat > src/main.rs <<'RUST'
use plotters::prelude::*;

fn main() {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (200, 100)).into_drawing_area();
        area.draw(&Text::new("twenty", (10, 10), ("sans-serif", 20).into_font())).unwrap();
        let mut chart = ChartBuilder::on(&area).build_cartesian_2d(0f64..1f64, 0f64..1f64).unwrap();
        chart.draw_series(LineSeries::new([(0.0, 0.0), (0.333, 0.5), (1.0, 1.0)], BLACK)).unwrap();
        area.present().unwrap();
    }
    let of = |name: &str| {
        let from = text.find(&format!(" {name}=\"")).unwrap() + name.len() + 3;
        text[from..].split('"').next().unwrap().trim().to_owned()
    };
    println!("font-size {}, points {}", of("font-size"), of("points"));
}
RUST
seen=$(cargo run --quiet)
echo "plotters 0.3.7, plotters-svg 0.3.7: $seen"
[[ $seen == "font-size 16.129032258064516, points 0,99 66,50 199,0" ]]
