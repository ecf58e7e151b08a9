//! Projects: what is set of them, from now on and for what is queued.

use super::Decision;
use crate::{
    Config, State,
    command::Project,
    event::Event,
    reply::{Code, Reply},
    settings::size::check_all,
};

impl State {
    pub(super) fn decide_project(&self, config: &Config, request: &Project) -> Decision {
        let was = self.settings(&request.project);
        let settings = Box::new(request.change.apply(&was));
        if let Err(error) = settings.check() {
            return Decision::refused(Code::SettingsMalformed, error);
        }
        // A project that holds something can always be paused, and its limits can always be set.
        let known = self.persisted.projects.get(&request.project);
        let holds_nothing = known.is_none_or(|project| project.is_empty());
        if (holds_nothing || settings.text_bytes() > was.text_bytes())
            && let Err(error) = check_all(config, self.settings_bytes, was.size(), settings.size())
        {
            return Decision::refused(Code::SettingsFull, error);
        }
        let mut told = settings.clone();
        told.forget_secrets();
        let reply = Reply::ProjectSet(told);
        let mut decision = Decision::reply(reply);
        if *settings != was {
            let project = request.project.clone();
            decision.events.push(Event::ProjectSet { project, settings });
        }
        decision
    }
}
