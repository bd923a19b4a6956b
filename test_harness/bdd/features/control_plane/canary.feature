@own-service
Feature: A new model on trial
  A canary gets a share of the traffic, chosen by a stable hash of the task, and is a pool of its
  own in metrics and logs until it is promoted or rolled back.

  Background:
    Given pool "stable" that launches 2 engines

  @ORCH-3033
  Scenario: It gets its share and takes over when it is promoted
    When the operator reloads "stable"
      | new_model_ref  | file:/models/trial.gguf |
      | canary_percent | 50                      |
    And "stable" comes to show
      | reload.phase          | canary |
      | reload.canary_percent | 50     |
    And acme submits 30 batch tasks "shared" of 2 tokens to "stable"
    Then all of "shared" have run, some of them in "stable" and some in "stable.canary"
    When acme submits to "stable"
      | task       | max_tokens |
      | meanwhile  | 60         |
    And the operator promotes "stable"
    Then "stable" comes to show
      | reload.phase | done                    |
      | model_ref    | file:/models/trial.gguf |
      | count        | 2                       |
    And "meanwhile" has run to its end
    And the operator may not promote "stable", for "no canary"

  @ORCH-3033
  Scenario: It is rolled back, and its tasks end
    When the operator reloads "stable"
      | new_model_ref  | file:/models/bad-idea.gguf |
      | canary_percent | 50                         |
    And "stable" comes to show
      | reload.phase | canary |
    And acme submits 12 batch tasks "shared" of 20 tokens to "stable"
    And the operator rolls-back "stable"
    Then all of "shared" have run
    And "stable" comes to show
      | reload.phase | rolled_back |
      | count        | 2           |

  @ORCH-3033
  Scenario: Only one trial at a time
    When the operator reloads "stable"
      | new_model_ref  | file:/models/first.gguf |
      | canary_percent | 5                       |
    And "stable" comes to show
      | reload.phase | canary |
    Then the operator may not reload "stable" to "file:/models/second.gguf", for "is being reloaded"
    When the operator rolls-back "stable"
    Then "stable" comes to show
      | reload.phase | rolled_back |
