@own-service
Feature: Circuit breaker
  A pool that keeps an objective of its interactive tasks from being met gives up batch work first,
  says so, and takes it again when the objective holds.

  Background:
    Given the section slos says
      """
      { window_s: 10, interactive: { first_token_p95_ms: 1 } }
      """
    And pool "shedding" with 1 engine of 8 slots and
      """
      admission: { circuit_breaker: { enabled: true, open_after_s: 2, close_after_s: 2 } }
      """
    And pool "stoic" with 1 engine of 8 slots

  @ORCH-3040
  Scenario: Batch work is refused while interactive tasks have to wait too long
    When interactive tasks of "shedding" are late until its circuit breaker opens
    And acme submits to "shedding"
      | task     | priority    |
      | report   | batch       |
      | question | interactive |
    Then "report" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | circuit-breaker  |
      | retriable    | true             |
    And the message to "report" names interactive.first_token_p95_ms and its goal 1
    And "question" is admitted
    When nobody is late any more and "report" is sent again until it is admitted
    Then "report" and "question" end well

  @ORCH-3040
  Scenario: What waits already keeps its place
    Given all slots of "shedding" are taken
    And acme submits to "shedding"
      | task   | priority |
      | report | batch    |
    When waiting interactive tasks of "shedding" are late until its circuit breaker opens
    And acme submits to "shedding"
      | task    | priority |
      | summary | batch    |
    Then "summary" is refused with
      | policy_label | circuit-breaker |
    When the engines of "shedding" go on
    Then "report" ends well
    When nobody is late any more and "summary" is sent again until it is admitted
    Then "summary" ends well

  @ORCH-3040
  Scenario: Without a circuit breaker nobody is refused
    When interactive tasks of "stoic" are late until its objective is violated
    And acme submits to "stoic"
      | task   | priority |
      | report | batch    |
    Then "report" is admitted
    And "report" ends well
