//! Who may do what at main: roles of a token, and the datasets it is for. One table of routes
//! ([`super::main_role::routes`]) names the roles of each; what it does not name is denied.

use super::model::name::{AgentName, BlockName, DatasetName};
use super::model::request::{RequestView, Selection};
use super::problem::Problem;
use super::tokens::Principal;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Dataset prefixes of one token.
pub const MAX_SCOPES: usize = 64;

/// What a token may do at main. A token has any set of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Asks for transfers, and steers its own.
    Submitter,
    /// Approves and rejects.
    Approver,
    /// Steers everybody's, agents and rules.
    Operator,
    /// Is an agent: speaks for the one of its own name.
    Agent,
}

impl Role {
    /// All of them: what the admin token has.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Submitter, Self::Approver, Self::Operator, Self::Agent];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Approver => "approver",
            Self::Operator => "operator",
            Self::Agent => "agent",
        })
    }
}

/// Whether `name` is `scope` or lies below it, by components.
pub fn below(name: &str, scope: &str) -> bool {
    let scope = scope.trim_end_matches('/');
    name.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || scope.is_empty())
}

impl Principal {
    /// Whether it has `role`.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether it has one of `roles`; 403 otherwise.
    pub fn needs(&self, roles: &[Role]) -> Result<(), Problem> {
        if roles.iter().any(|role| self.is(*role)) {
            return Ok(());
        }
        let words: Vec<_> = roles.iter().map(Role::to_string).collect();
        let detail = format!("the token `{}` needs the role {} for that", self.name, words.join(" or "));
        Err(Problem::denied(detail))
    }

    /// Whether it is for every dataset.
    pub fn is_unscoped(&self) -> bool {
        self.datasets.is_empty()
    }

    /// Whether `dataset` is within its scopes. No dataset at all is within no scope.
    pub fn covers(&self, dataset: Option<&DatasetName>) -> bool {
        self.is_unscoped()
            || dataset.is_some_and(|name| self.datasets.iter().any(|scope| below(name.as_str(), scope.as_str())))
    }

    /// As [`Self::covers`], for a block. By custom it is named `dataset#...`; another one is within no scope.
    pub fn covers_block(&self, block: &BlockName) -> bool {
        let dataset = block.as_str().split_once('#').and_then(|(name, _)| name.parse().ok());
        self.covers(dataset.as_ref())
    }

    /// Whether what `select` names is within its scopes. Lists, prefixes and manifests name no dataset.
    pub fn covers_selection(&self, select: &Selection) -> bool {
        match select {
            Selection::Dataset(name) => self.covers(Some(name)),
            Selection::Block(name) => self.covers_block(name),
            Selection::Files(_) | Selection::Prefix(_) | Selection::Manifest => self.is_unscoped(),
        }
    }

    /// Whether it may see `request`: its own, or one within its scopes.
    pub fn sees(&self, request: &RequestView) -> bool {
        request.owner == self.name || self.covers_selection(&request.spec.select)
    }

    /// Whether it may steer `request`: an operator within its scopes, or the owner.
    pub fn steers(&self, request: &RequestView) -> Result<(), Problem> {
        let operates = self.is(Role::Operator) && self.covers_selection(&request.spec.select);
        match operates || request.owner == self.name {
            true => Ok(()),
            false => Err(Problem::denied("this request is another token's: its owner or an operator steers it")),
        }
    }

    /// Whether it speaks for the agent `name`: the one of its own name; a token with all roles and no scope for any.
    pub fn speaks_for(&self, name: &AgentName) -> Result<(), Problem> {
        let all = self.is_unscoped() && Role::ALL.iter().all(|role| self.is(*role));
        match all || (self.is(Role::Agent) && self.name == name.as_str()) {
            true => Ok(()),
            false => Err(Problem::denied(format!(
                "the token `{}` does not speak for the agent `{name}`: an agent's token has the agent's name",
                self.name
            ))),
        }
    }
}

/// 401: the table has nothing for nobody.
pub fn nobody() -> Problem {
    let detail = "this needs one header `Authorization: Bearer TOKEN`: see --token-file";
    Problem::new(StatusCode::UNAUTHORIZED, crate::engine::error::Class::Denied, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_end_at_components() {
        for (name, scope, want) in [
            ("/cosmics", "/cosmics", true),
            ("/cosmics/run7", "/cosmics", true),
            ("/cosmics/run7", "/cosmics/", true),
            ("/cosmics2", "/cosmics", false),
            ("/cosmic", "/cosmics", false),
            ("/a", "/", true),
        ] {
            assert_eq!(below(name, scope), want, "{name} below {scope}");
        }
    }
}
