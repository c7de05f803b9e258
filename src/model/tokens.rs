//! Trained rows of the embedding table in a pass ([`super::token_site`]): put in the place of the table's, and their gradient.

use super::Model;
use super::gradients::{GradientRequest, Gradients};
use super::input::Input;
use super::token_site::{TokenRows, TokenSite};
use crate::Result;
use crate::backend::ops::{EditBwd, EditFwd, EditMap, GatherAcc, LoraSite, ScatterAdd};
use crate::backend::{Backend, TensorMut};
use crate::formats::adapter::Table;
use crate::pack::Token;

impl<'a, B: Backend> Input<'a, B> {
    /// The tokens whose rows are trained.
    pub(super) fn tokens(&self) -> Option<&'a TokenSite> {
        self.adaptation.and_then(|adaptation| adaptation.layout.tokens.as_ref())
    }

    /// The LoRA of the head, or that which stands for trained rows of a tied one, in its parameters.
    ///
    /// # Panics
    /// If trained rows were not installed.
    pub(super) fn head(&self) -> Option<(&'a B::Acc, LoraSite)> {
        let adaptation = self.adaptation?;
        let site = adaptation.layout.head()?;
        let params = match adaptation.layout.table(Table::Head) {
            Some(_) => &adaptation.params,
            None => &adaptation.token_head.as_ref().expect("forward: trained rows were not installed").lora,
        };
        Some((params, site))
    }
}

impl<B: Backend> Model<B> {
    /// Puts trained rows in the place of the table's among the embedded rows `[N, E]` of adapters.
    pub(super) fn place_tokens(
        &self,
        backend: &mut B,
        embedded: &mut B::Acc,
        input: &Input<'_, B>,
    ) -> Result<Option<TokenRows<B>>> {
        let (Some(site), Some(adaptation)) = (input.tokens(), input.adaptation) else { return Ok(None) };
        let at = |id: u32| site.ids.iter().position(|&other| other == id).map(|i| (site.first + i) as u32);
        let row = |(row, token): (usize, &Token)| match *token {
            Token::Id(id) => at(id).filter(|_| input.pack.run_of(row).is_some()).map(|at| (row as u32, at)),
            Token::Virtual(_) => None,
        };
        let rows: Vec<(u32, u32)> = input.pack.tokens().iter().enumerate().filter_map(row).collect();
        let rows = TokenRows::new(backend, &rows, self.config.padding_row().and_then(at))?;
        if let Some(TokenRows { all: [rows, value_rows], .. }) = &rows {
            let (width, add) = (self.config.embed_size, self.config.embed_scale);
            let (values, map) = (&adaptation.params, EditMap { keep: 0.0, along: 0.0 });
            backend.edit_fwd(EditFwd { x: TensorMut::Acc(embedded), values, rows, value_rows, width, map, add });
        }
        Ok(rows)
    }

    /// From the gradient of the embedded rows to `+=` that of trained ones.
    ///
    /// # Panics
    /// If the scratch was planned without this layout.
    pub(super) fn tokens_backward(
        &self,
        backend: &mut B,
        rows: Option<&TokenRows<B>>,
        grads: &mut Gradients<B>,
        input: &Input<'_, B>,
        request: &mut GradientRequest<'_, B>,
    ) {
        let Some([rows, param_rows, all]) = rows.and_then(|rows| rows.trainable.as_ref()) else { return };
        let Some(adaptation) = input.adaptation else { return };
        let d_params = request.d_params.as_deref_mut();
        let d_params = d_params.expect("backward: adapters went in, their gradients have no buffer");
        let mut scratch = grads.tables.take().expect("backward: the scratch was planned with this layout");
        let d_rows = scratch.tokens.as_mut().expect("backward: the scratch was planned with this layout");
        let width = self.config.embed_size;
        backend.gather_acc(GatherAcc { out: &mut *d_rows, x: grads.d_embed(), rows, width });
        if self.config.embed_scale != 1.0 {
            let (d_x, map) = (TensorMut::Acc(&mut *d_rows), EditMap { keep: self.config.embed_scale, along: 0.0 });
            let values = &adaptation.params;
            backend.edit_bwd(EditBwd { d_x, values, rows: all, value_rows: param_rows, width, map });
        }
        backend.scatter_add(ScatterAdd { d_x: d_params, d_out: d_rows, rows: param_rows, width });
        grads.tables = Some(scratch);
    }
}
