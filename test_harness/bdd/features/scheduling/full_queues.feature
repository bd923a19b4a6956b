@own-service
Feature: Full queues
  A queue is bounded. What happens at its end is the operator's choice, and whoever loses by it is
  told so, in the same words everywhere.

  Background:
    Given pool "strict" with 1 engine of 1 slot and
      """
      queue: { capacity: 2, full_policy: reject }
      """
    And pool "fresh" with 1 engine of 1 slot and
      """
      queue: { capacity: 2, full_policy: drop-lru }
      """
    And pool "urgent" with 1 engine of 1 slot and
      """
      queue: { capacity: 2, full_policy: shed-low-priority }
      """
    And pool "classes" with 1 engine of 1 slot and
      """
      queue: { capacity: 8, full_policy: reject }
      admission: { priorities: [ { name: batch, queue_capacity: 1 } ] }
      """

  @ORCH-3004 @ORCH-3005 @OC-CORE-1002 @ORCH-2007
  Scenario: With reject the newcomer goes, and is welcome later
    Given all slots of "strict" are taken
    When acme submits to "strict"
      | task   |
      | first  |
      | second |
      | third  |
    Then "first" and "second" are admitted
    And "third" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | reject           |
      | retriable    | true             |
    When the engines of "strict" go on
    And "third" is sent again until it is admitted
    Then "first", "second" and "third" end well

  @ORCH-3005 @OC-CORE-1002
  Scenario: With drop-lru the one that has waited longest goes
    Given all slots of "fresh" are taken
    When acme submits to "fresh"
      | task   |
      | first  |
      | second |
      | third  |
    Then "first", "second" and "third" are admitted
    And the stream of "first" ends with
      | event        | error               |
      | code         | QUEUE_FULL_DROP_LRU |
      | policy_label | drop-lru            |
      | retriable    | true                |
    When the engines of "fresh" go on
    Then "second" and "third" end well

  @ORCH-3005 @OC-CORE-1002 @ORCH-2007
  Scenario: With drop-lru nobody goes for something less urgent
    Given all slots of "fresh" are taken
    When acme submits to "fresh"
      | task     | priority    |
      | question | interactive |
      | another  | interactive |
      | report   | batch       |
    Then "report" is refused with
      | code         | QUEUE_FULL_DROP_LRU |
      | policy_label | drop-lru            |
      | retriable    | true                |
    When the engines of "fresh" go on
    Then "question" and "another" end well

  @ORCH-3005 @OC-CORE-1002 @ORCH-2007
  Scenario: With shed-low-priority batch work makes room for interactive work only
    Given all slots of "urgent" are taken
    When acme submits to "urgent"
      | task      | priority    |
      | report    | batch       |
      | summary   | batch       |
      | appendix  | batch       |
      | question  | interactive |
      | follow-up | interactive |
      | one more  | interactive |
    Then "report", "summary", "question" and "follow-up" are admitted
    And "appendix" and "one more" are refused with
      | code         | ADMISSION_REJECT  |
      | policy_label | shed-low-priority |
      | retriable    | true              |
    And the streams of "report" and "summary" end with
      | event        | error             |
      | code         | ADMISSION_REJECT  |
      | policy_label | shed-low-priority |
      | retriable    | true              |
    When the engines of "urgent" go on
    Then "question" and "follow-up" end well

  @OC-CORE-1001 @ORCH-3004
  Scenario: A class that is full leaves the other one alone
    Given all slots of "classes" are taken
    When acme submits to "classes"
      | task     | priority    |
      | report   | batch       |
      | summary  | batch       |
      | question | interactive |
    Then "report" and "question" are admitted
    And "summary" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | reject           |
    When the engines of "classes" go on
    Then "report" and "question" end well
