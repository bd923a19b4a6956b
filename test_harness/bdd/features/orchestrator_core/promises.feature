@own-service
Feature: Promises of the scheduler
  Somebody who shares engines with others wants to know three things: that work goes where there is
  room, that a place in the queue is kept, and that what was called off never runs.

  Background:
    Given pool "pair" with 2 engines of 1 slot
    And pool "single" with 1 engine of 1 slot

  @ORCH-3008 @OC-CORE-1012
  Scenario: Work goes where there is room
    Given the engines of "pair" stop after 2 tokens of each task
    When acme submits to "pair"
      | task  |
      | first |
    And "first" runs on r0
    And acme submits to "pair"
      | task   |
      | second |
      | third  |
    And "second" runs on r1
    Then the explanation of "third" shows
      | state          | waiting |
      | queue_position | 0       |
    When the engines of "pair" go on
    Then "first", "second" and "third" end well

  @OC-CORE-1001 @OC-CORE-1004
  Scenario: Everybody keeps their place
    Given all slots of "single" are taken
    When acme submits to "single"
      | task  |
      | one   |
      | two   |
    And zeta submits to "single"
      | task  |
      | three |
    Then "one", "two" and "three" are admitted
    When the engines of "single" go on
    Then "single" ran "one", "three", "two" in this order
    And "one", "two" and "three" end well

  @OC-CORE-1005 @ORCH-3017
  Scenario: What was called off never runs
    Given all slots of "single" are taken
    When acme submits to "single"
      | task     | max_tokens |
      | needed   | 4          |
      | obsolete | 4          |
      | urgent   | 4          |
    And acme posts to /v1/tasks/{obsolete}/cancel
    Then the answer is 204
    And the stream of "obsolete" ends with
      | event      | end  |
      | canceled   | true |
      | tokens_out | 0    |
    When the engines of "single" go on
    Then "single" ran "needed", "urgent" in this order
    And "needed" and "urgent" end well

  @OC-CORE-1010 @ORCH-3010
  Scenario: Nobody is sent to an engine that is gone
    When engine r0 of "pair" dies
    And acme submits to "pair"
      | task  |
      | first |
    Then "first" ran on r1
    And "first" ends well
