//! What control asks of the engine, as a trait, so that the HTTP port can be tested without one.

use crate::engine::error::TransferError;
use crate::engine::handle::{EngineHandle, TicketSource, TransferStatus, TransferWatch};
use crate::engine::spec::{DestinationSpec, Grant, SourceSpec, Steer, Ticket, TransferOptions};
use crate::ids::TransferId;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A future on the heap.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The part of [`EngineHandle`] that the HTTP port uses.
pub trait TransferEngine: Send + Sync {
    /// See [`EngineHandle::issue`].
    fn issue(&self, grant: Grant) -> Boxed<'_, Result<Ticket, TransferError>>;
    /// See [`EngineHandle::pull`].
    fn pull(
        &self,
        principal: String,
        to: DestinationSpec,
        from: Vec<Arc<dyn TicketSource>>,
    ) -> Boxed<'_, Result<TransferWatch, TransferError>>;
    /// See [`EngineHandle::push`].
    fn push(
        &self,
        principal: String,
        from: SourceSpec,
        to: Arc<dyn TicketSource>,
        options: TransferOptions,
    ) -> Boxed<'_, Result<TransferWatch, TransferError>>;
    /// See [`EngineHandle::transfers`].
    fn transfers(&self) -> Boxed<'_, Vec<TransferStatus>>;
    /// See [`EngineHandle::steer`].
    fn steer(&self, id: TransferId, steer: Steer) -> Boxed<'_, bool>;
    /// See [`EngineHandle::facts`].
    fn facts(&self) -> Vec<(String, String)>;
}

impl TransferEngine for EngineHandle {
    fn issue(&self, grant: Grant) -> Boxed<'_, Result<Ticket, TransferError>> {
        Box::pin(EngineHandle::issue(self, grant))
    }

    fn pull(
        &self,
        principal: String,
        to: DestinationSpec,
        from: Vec<Arc<dyn TicketSource>>,
    ) -> Boxed<'_, Result<TransferWatch, TransferError>> {
        Box::pin(async move { EngineHandle::pull(self, &principal, to, from).await })
    }

    fn push(
        &self,
        principal: String,
        from: SourceSpec,
        to: Arc<dyn TicketSource>,
        options: TransferOptions,
    ) -> Boxed<'_, Result<TransferWatch, TransferError>> {
        Box::pin(async move { EngineHandle::push(self, &principal, from, to, options).await })
    }

    fn transfers(&self) -> Boxed<'_, Vec<TransferStatus>> {
        Box::pin(EngineHandle::transfers(self))
    }

    fn steer(&self, id: TransferId, steer: Steer) -> Boxed<'_, bool> {
        Box::pin(EngineHandle::steer(self, id, steer))
    }

    fn facts(&self) -> Vec<(String, String)> {
        EngineHandle::facts(self)
    }
}
