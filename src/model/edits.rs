//! Edits on a device: their values, and the rows of a pass that they are made on.

use super::output_rows::OutputRows;
use crate::Result;
use crate::arch::ModelConfig;
use crate::backend::ops::{EditBwd, EditFwd, EditMap};
use crate::backend::{AccElement, Backend, TensorMut};
use crate::hooks::edit::{Edit, EditOp, EditRows};
use crate::hooks::{Selection, Site};

impl ModelConfig {
    /// Refuses edits that do not fit the model.
    ///
    /// # Errors
    /// A site that cannot be edited or that the model lacks, a layer beyond its depth, values of another width or that are not
    /// finite, as many rows as there are no positions for, or a direction of length 0.
    pub fn check_edits(&self, edits: &[Edit]) -> Result<()> {
        edits.iter().try_for_each(|edit| self.check_edit(edit))
    }

    fn check_edit(&self, edit: &Edit) -> Result<()> {
        for &(site, layer) in &edit.hooks.hooks {
            if !site.is_editable() {
                let names: Vec<String> = Site::all().into_iter().filter(|s| s.is_editable()).map(Site::local).collect();
                return Err(edit.error("site", format!("one of {}", names.join(", ")), site.name(layer)));
            }
            if !self.has(site) {
                let expected = format!("a site that {} models have", self.family.name());
                return Err(edit.error("site", expected, site.name(layer)));
            }
            if site.in_block() && layer >= self.num_hidden_layers {
                return Err(edit.error("layers", format!("layers below {}", self.num_hidden_layers), layer));
            }
            let width = self.stored_width(site);
            if let Some((_, found)) = edit.op.values().filter(|(_, found)| *found != width) {
                return Err(edit.error("value", format!("rows of {width} elements for {}", site.name(layer)), found));
            }
        }
        if let EditOp::Scale(factor) = edit.op
            && !factor.is_finite()
        {
            return Err(edit.error("scale", "a finite number", factor));
        }
        let Some((values, width)) = edit.op.values() else { return Ok(()) };
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            return Err(edit.error("value", "finite elements", format!("{} at element {i}", values[i])));
        }
        if matches!(edit.op, EditOp::ProjectOut(_)) && values.iter().all(|x| *x == 0.0) {
            return Err(edit.error("value", "a direction of a length above 0", "zeros"));
        }
        edit.check_rows(values.len() / width.max(1))
    }
}

/// Edits with their values on a device.
pub struct EditSet<B: Backend> {
    edits: Vec<DeviceEdit<B>>,
}

struct DeviceEdit<B: Backend> {
    hooks: Selection,
    map: EditMap,
    add: f64,
    /// `[rows, width]`; one row of zeros where the operation has none.
    values: B::Acc,
}

impl<B: Backend> EditSet<B> {
    /// The edits of a model.
    ///
    /// # Errors
    /// See [`ModelConfig::check_edits`]; if the device has no memory for the values.
    pub fn new(backend: &mut B, config: &ModelConfig, edits: &[Edit]) -> Result<Self> {
        config.check_edits(edits)?;
        let edits = edits.iter().map(|edit| DeviceEdit::new(backend, config, edit)).collect::<Result<_>>()?;
        Ok(Self { edits })
    }
}

impl<B: Backend> DeviceEdit<B> {
    fn new(backend: &mut B, config: &ModelConfig, edit: &Edit) -> Result<Self> {
        let (keep, along, add) = match edit.op {
            EditOp::Add(_) => (1.0, 0.0, 1.0),
            EditOp::Replace(_) => (0.0, 0.0, 1.0),
            EditOp::Scale(factor) => (factor, 0.0, 0.0),
            EditOp::Zero => (0.0, 0.0, 0.0),
            EditOp::ProjectOut(_) => (1.0, -1.0, 0.0),
        };
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let host = match (&edit.op, edit.op.values()) {
            (EditOp::ProjectOut(direction), _) => {
                let direction = wide(direction);
                let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
                direction.iter().map(|x| x / length).collect()
            }
            (_, Some((values, _))) => wide(values),
            (_, None) => {
                let width = |&(site, _): &(Site, usize)| config.stored_width(site);
                vec![0.0; edit.hooks.hooks.iter().map(width).max().unwrap_or(0)]
            }
        };
        let host: Vec<B::Element> = host.into_iter().map(B::Element::from_f64).collect();
        let mut values = backend.acc(host.len())?;
        backend.upload(&mut values, 0, &host)?;
        Ok(Self { hooks: edit.hooks.clone(), map: EditMap { keep, along }, add, values })
    }
}

/// Edits at the rows of one pass.
pub struct PassEdits<'a, B: Backend> {
    set: &'a EditSet<B>,
    /// By edit; none where no row is edited.
    placed: Vec<Option<Placed<B>>>,
}

/// The rows of an edit, each with its row of the values.
struct Placed<B: Backend> {
    /// Among all rows of the pass.
    all: [B::Index; 2],
    /// Among the output rows, where only those come out.
    outputs: Option<[B::Index; 2]>,
}

impl<'a, B: Backend> PassEdits<'a, B> {
    /// The edits of `set` at `rows` of a pass of which the rows `output` come out (none means all).
    ///
    /// # Errors
    /// If the device has no memory for their lists.
    ///
    /// # Panics
    /// If the rows are those of other edits.
    pub fn new(backend: &mut B, set: &'a EditSet<B>, rows: &EditRows, output: Option<&OutputRows<B>>) -> Result<Self> {
        assert!(rows.0.len() == set.edits.len(), "edits: rows of {} for {}", rows.0.len(), set.edits.len());
        let mut lists = |rows: &[(usize, usize)]| -> Result<[B::Index; 2]> {
            let list = |f: fn(&(usize, usize)) -> usize| rows.iter().map(|row| f(row) as u32).collect::<Vec<_>>();
            Ok([backend.index(&list(|row| row.0))?, backend.index(&list(|row| row.1))?])
        };
        let mut placed = Vec::with_capacity(rows.0.len());
        for rows in &rows.0 {
            let place = |(row, value): &(usize, usize), output: &OutputRows<B>| {
                output.rows.binary_search(row).ok().map(|row| (row, *value))
            };
            let narrowed =
                |output: &OutputRows<B>| rows.iter().filter_map(|row| place(row, output)).collect::<Vec<_>>();
            placed.push(match rows.is_empty() {
                true => None,
                false => Some(Placed {
                    all: lists(rows)?,
                    outputs: output.map(narrowed).map(|rows| lists(&rows)).transpose()?,
                }),
            });
        }
        Ok(Self { set, placed })
    }

    /// Whether a hook is edited.
    pub(super) fn at(&self, site: Site, layer: usize) -> bool {
        self.of(site, layer).next().is_some()
    }

    /// The edits of a hook, in their order.
    fn of(&self, site: Site, layer: usize) -> impl DoubleEndedIterator<Item = (&DeviceEdit<B>, &Placed<B>)> {
        let edits = self.set.edits.iter().zip(&self.placed);
        let edits = edits.filter_map(|(edit, placed)| Some((edit, placed.as_ref()?)));
        edits.filter(move |(edit, _)| edit.hooks.contains(site, layer))
    }

    /// Edits the tensor of a hook `[rows, width]`, whose rows are the output rows or all.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        (site, layer): (Site, usize),
        outputs: bool,
        mut x: TensorMut<'_, B>,
        width: usize,
    ) {
        for (edit, placed) in self.of(site, layer) {
            let [rows, value_rows] = placed.lists(outputs);
            let (values, map, add) = (&edit.values, edit.map, edit.add);
            backend.edit_fwd(EditFwd { x: x.reborrow(), values, rows, value_rows, width, map, add });
        }
    }

    /// From the gradient of what the edits of a hook left to that of what they found, in place.
    pub(super) fn backward(
        &self,
        backend: &mut B,
        (site, layer): (Site, usize),
        outputs: bool,
        mut d_x: TensorMut<'_, B>,
        width: usize,
    ) {
        // What is added has no part in the gradient of the row.
        let identity = EditMap { keep: 1.0, along: 0.0 };
        for (edit, placed) in self.of(site, layer).rev().filter(|(edit, _)| edit.map != identity) {
            let [rows, value_rows] = placed.lists(outputs);
            let (values, map) = (&edit.values, edit.map);
            backend.edit_bwd(EditBwd { d_x: d_x.reborrow(), values, rows, value_rows, width, map });
        }
    }
}

/// `x [rows, width] = values`, of the leading rows that there are values for.
pub(super) fn replace<B: Backend>(backend: &mut B, x: TensorMut<'_, B>, width: usize, values: &[f32]) -> Result<()> {
    let host: Vec<B::Element> = values.iter().map(|&x| B::Element::from_f64(f64::from(x))).collect();
    let mut values = backend.acc(host.len())?;
    backend.upload(&mut values, 0, &host)?;
    let rows: Vec<u32> = (0..host.len() / width).map(|row| row as u32).collect();
    let rows = backend.index(&rows)?;
    let map = EditMap { keep: 0.0, along: 0.0 };
    backend.edit_fwd(EditFwd { x, values: &values, rows: &rows, value_rows: &rows, width, map, add: 1.0 });
    Ok(())
}

impl<B: Backend> Placed<B> {
    fn lists(&self, outputs: bool) -> &[B::Index; 2] {
        self.outputs.as_ref().filter(|_| outputs).unwrap_or(&self.all)
    }
}
