@own-service
Feature: An engine is lost, and comes back
  The engine runs somewhere else and fails like everything else. The service notices, says so, and
  takes it back when it is well.

  Background:
    Given pool "remote" with 1 engine of 2 slots
    And pool "watched" with 1 engine of 2 slots and
      """
      timeouts: { wall_ms: 60000, idle_ms: 400 }
      """

  @ORCH-3010 @OC-CORE-1010
  Scenario: While it loads its model again nobody is sent to it
    When the engine of "remote" loads its model again
    Then "remote" comes to show
      | ready | false |
    When acme submits to "remote"
      | task  |
      | early |
    Then "early" is turned away with
      | code      | POOL_UNAVAILABLE |
      | retriable | true             |
    When the engine of "remote" has loaded
    Then "remote" comes to show
      | ready | true |
    When "early" is sent again
    Then "early" is admitted
    And "early" ends well

  @OC-CORE-1022 @ORCH-3016
  Scenario: It falls silent, and the task is ended for it
    Given the engines of "watched" stop after 3 tokens of each task
    When acme submits to "watched"
      | task   | max_tokens |
      | silent | 9          |
    Then the stream of "silent" ends with
      | event     | error          |
      | code      | DECODE_TIMEOUT |
    When the engines of "watched" go on
    And acme submits to "watched"
      | task |
      | next |
    Then "next" ends well
