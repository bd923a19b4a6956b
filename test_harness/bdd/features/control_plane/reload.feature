@own-service
Feature: Another model for a pool
  A reload starts engines with the new model beside the old ones and switches when all of them work.
  Clients notice nothing; a model that does not work changes nothing; a rollback is one order.

  Background:
    Given pool "served" that launches 2 engines

  @ORCH-2102 @OC-CTRL-2003
  Scenario: Tasks that run end on the old engines, the next ones get the new model
    When acme submits to "served"
      | task   | max_tokens |
      | before | 60         |
    And the operator reloads "served"
      | new_model_ref | file:/models/next.gguf |
    Then "served" comes to show
      | reload.phase | done                   |
      | model_ref    | file:/models/next.gguf |
      | count        | 2                      |
    When acme submits to "served"
      | task  | max_tokens |
      | after | 5          |
    Then "before" and "after" have run to their ends

  @ORCH-2102 @ORCH-3033
  Scenario: A rollback is one order, and a second one changes nothing
    When the operator reloads "served"
      | new_model_ref | file:/models/other.gguf |
    And "served" comes to show
      | reload.phase | done |
    And the operator rolls-back "served"
    And "served" comes to show
      | reload.phase | rolled_back |
      | count        | 2           |
    And the operator rolls-back "served"
    And acme submits to "served"
      | task  | max_tokens |
      | after | 5          |
    Then "after" has run to its end
    And "served" comes to show
      | reload.phase | rolled_back |

  @ORCH-2102
  Scenario: A rollback while the old engines still drain puts them back at once
    When acme submits to "served"
      | task | max_tokens |
      | long | 150        |
    And the operator reloads "served"
      | new_model_ref | file:/models/doubtful.gguf |
    And "served" comes to show
      | reload.phase | switching |
    And the operator rolls-back "served"
    And "served" comes to show
      | reload.phase | rolled_back |
    Then "long" has run to its end
