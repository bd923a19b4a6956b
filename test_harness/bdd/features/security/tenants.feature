@own-service
Feature: Neighbours
  Two companies share a service. What belongs to one does not exist for the other, everybody may do
  what their role is for and no more, and no key is ever written down.

  Background:
    Given pool "shared" with 1 engine of 2 slots

  @ORCH-3035
  Scenario: What belongs to one company does not exist for the other
    When acme submits to "shared"
      | task           | session | max_tokens |
      | our next offer | board   | 8          |
    Then "our next offer" ends well
    When zeta asks for /v1/tasks/{our next offer}/stream
    Then the answer is 404
    When zeta asks for /v1/tasks/{our next offer}/determinism
    Then the answer is 404
    When zeta posts to /v1/tasks/{our next offer}/cancel
    Then the answer is 404
    When zeta asks for /v1/sessions/{our next offer.session}
    Then the answer is 404

  @OC-CTRL-2040 @ORCH-3035
  Scenario: A role opens its own doors only
    When acme posts to /v1/pools/shared/drain
      """
      { deadline_ms: 1000 }
      """
    Then the answer is 403
    When acme asks for /metrics
    Then the answer is 403
    When the scraper submits to "shared"
      | task        |
      | just curious |
    Then the answer is 403
    When the operator asks for /v1/pools/shared/health
    Then the answer is 200 with
      | draining | false |

  @OC-CTRL-2041
  Scenario: No key and no prompt is written down
    When a stranger asks for /v1/capabilities
    And acme submits to "shared"
      | task                | max_tokens |
      | the code is 4-8-1-5 | 4          |
      | the code is wrong   | 0          |
    Then "the code is 4-8-1-5" ends well
    And the log tells of "the code is 4-8-1-5"
      | event      |
      | task.ended |
    And no key, and not the prompt "the code is", stands in log, metrics or answers
