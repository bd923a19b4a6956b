@own-service
Feature: Deadlines
  Whoever says by when an answer is needed is served in that order, and learns at once when it
  cannot be had in time, and when to come back.

  Background:
    Given pool "timely" with 1 engine of 1 slot
    And pool "double" with 1 engine of 2 slots

  @ORCH-3079
  Scenario: The earliest deadline goes first, whoever came first
    Given all slots of "timely" are taken
    When acme submits to "timely"
      | task        | deadline_ms |
      | by midnight | 100000      |
      | by five     | 60000       |
      | by six      | 80000       |
    And the engines of "timely" go on
    Then "timely" ran "by five", "by six", "by midnight" in this order

  @ORCH-3079
  Scenario: What would come too late is refused, and may come back when it is told to
    Given acme submits 3 interactive tasks "warm-up" of 10 tokens to "timely"
    And all tasks have ended
    And the engines of "timely" stop after 1 tokens of each task
    When acme submits to "timely"
      | task      | max_tokens | ctx  | deadline_ms |
      | long read | 4000       | 8192 | 60000       |
      | urgent    | 100        | 512  | 2000        |
      | patient   | 100        | 512  | 60000       |
    Then "long read" and "patient" are admitted
    And "urgent" is refused with
      | code      | DEADLINE_UNMET |
      | retriable | true           |
    And "urgent" is told to come back in 1000 to 2200 ms
    And the message to "urgent" names the deadline that could be met
    When the engines of "timely" go on
    And "urgent" is sent again until it is admitted
    Then "long read", "patient" and "urgent" end well

  @ORCH-3079
  Scenario: What takes longer than its own deadline need not come back
    Given acme submits 3 interactive tasks "warm-up" of 10 tokens to "timely"
    And all tasks have ended
    When acme submits to "timely"
      | task     | max_tokens | ctx  | deadline_ms |
      | hopeless | 4000       | 8192 | 1000        |
    Then "hopeless" is refused with
      | code      | DEADLINE_UNMET |
      | retriable | false          |

  @ORCH-3079
  Scenario: A deadline that passes in the queue ends the wait
    Given all slots of "timely" are taken
    When acme submits to "timely"
      | task      | deadline_ms |
      | perishing | 500         |
      | lasting   | 60000       |
    Then the stream of "perishing" ends with
      | event     | error          |
      | code      | DEADLINE_UNMET |
      | retriable | true           |
    When the engines of "timely" go on
    Then "lasting" ends well

  @ORCH-3100
  Scenario: A reader sees how likely the answer is in time
    Given acme submits 3 interactive tasks "warm-up" of 10 tokens to "double"
    And all tasks have ended
    And the engines of "double" stop after 1 tokens of each task
    When acme submits to "double"
      | task  | max_tokens | ctx  | deadline_ms |
      | tight | 4000       | 8192 | 4200        |
      | safe  | 4000       | 8192 | 60000       |
    Then "safe" is more likely on time than "tight"
